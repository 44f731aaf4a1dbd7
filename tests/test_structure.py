"""Structure: imports run one way, modules are few and of a useful size, importing is quick.

python tests/test_structure.py    # prints the counts that are tested here
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "featherface"
# Lower rooms know nothing of higher ones. A name covers a module or a whole folder.
FLOORS = (
    ("errors", "files", "config", "images", "structures"),
    ("cli", "drawing", "plots", "video"),
    ("anchors", "models", "distributed", "onnx_export"),
    ("losses", "data", "checkpoint"),
    ("face_detector", "onnx_detector", "runtimes", "detector", "peers"),
    ("evaluation",),
    ("detect_files", "labelling", "training", "export", "benchmark"),
    ("notebook",),
    ("commands",),
    ("__main__",),
)


# Counts of featherface/. Lower a limit when code goes; do not raise one without a reason.
LIMITS = {
    "modules": 78,
    "lines": 15_500,
    "settings": 48,
    "lines of the longest function": 60,
    "modules behind a training step": 20,
}
LEAST_LINES, LEAST_FOR_ONE = 40, 60  # of a module; of one that only one other imports


def floor_of(module: str) -> int:
    """0 is the lowest."""
    parts = module.removeprefix("featherface.").split(".")
    for floor, names in enumerate(FLOORS):
        if parts[0] in names:
            return floor
    raise AssertionError(f"{module} has no floor: add it to FLOORS")


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "featherface":
            names = (alias.name for alias in node.names)
            found |= {f"featherface.{name}" for name in names if name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("featherface."):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("featherface.")}
    return found


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): imports_of(file) for file in sorted(PACKAGE.rglob("*.py"))}


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 20 and "featherface.structures" in MODULES["featherface.anchors"]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "featherface"])
def test_imports_never_go_up(module):
    higher = [name for name in MODULES[module] if floor_of(name) > floor_of(module)]
    assert higher == [], f"{module} imports from above: {higher}"


def test_no_import_cycle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in done:
            for name in MODULES.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def path_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def lines_of(module: str) -> int:
    return len(path_of(module).read_text().splitlines())


def behind(module: str, found: set[str]) -> set[str]:
    """The module and every one that it imports, directly or not."""
    if module in MODULES and module not in found:
        found.add(module)
        for name in MODULES[module]:
            behind(name, found)
    return found


def functions() -> list[tuple[int, str]]:
    """Lines and place of every function."""
    return [
        (node.end_lineno - node.lineno + 1, f"{module}.{node.name}")
        for module in MODULES
        for node in ast.walk(ast.parse(path_of(module).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def counts() -> dict[str, int]:
    from featherface.config import SETTINGS

    return {
        "modules": len(MODULES),
        "lines": sum(map(lines_of, MODULES)),
        "settings": len(SETTINGS),
        "lines of the longest function": max(functions())[0],
        "modules behind a training step": len(behind("featherface.training.step", set())),
    }


@pytest.mark.parametrize("what", LIMITS)
def test_counts_stay_within_their_limits(what):
    assert counts()[what] <= LIMITS[what], (what, max(functions()))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_worth_a_file(module):
    if path_of(module).name in ("__init__.py", "__main__.py", "errors.py"):
        return
    readers = [file for file in (*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py"))
               if module in imports_of(file)]  # fmt: skip
    assert readers, f"{module} is never imported"
    least = LEAST_FOR_ONE if len(readers) == 1 else LEAST_LINES
    assert lines_of(module) >= least, f"{module} is too small for a module of its own"


def test_models_know_no_losses_and_losses_no_models():
    for module, imports in MODULES.items():
        forbidden = {
            "models": ("losses", "data", "config"),
            "losses": ("models", "data", "training"),
        }
        for room, others in forbidden.items():
            if module.startswith(f"featherface.{room}"):
                bad = [n for n in imports if n.split(".")[1] in others]
                assert bad == [], f"{module} imports {bad}"


def test_only_checkpoint_loads_and_saves_tensors():
    users = [
        file.name
        for file in PACKAGE.rglob("*.py")
        if "torch.load(" in file.read_text() or "torch.save(" in file.read_text()
    ]
    assert users == ["checkpoint.py"]


def test_importing_the_face_loads_neither_torch_nor_opencv():
    code = (
        "import sys, featherface\n"
        "from featherface.structures import Detections\n"
        "print([m for m in ('torch', 'cv2', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_every_public_name_resolves():
    import featherface

    for name in featherface.__all__:
        assert getattr(featherface, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featherface.nothing


if __name__ == "__main__":
    for what, count in counts().items():
        print(f"{what:32}{count:>7,} (limit {LIMITS[what]:,})")
