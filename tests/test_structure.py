"""The house: imports run one way, the face is quick to import, torch.load lives in one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "featherface"
# Lower rooms know nothing of higher ones. A name covers a module or a whole folder.
FLOORS = (
    ("errors", "files", "config", "structures"),
    ("cli", "images", "drawing", "plots"),
    ("anchors", "models", "distributed", "onnx_export"),
    ("losses", "data", "checkpoint"),
    ("face_detector", "onnx_detector", "detector"),
    ("evaluation",),
    ("detect_files", "training", "export", "benchmark"),
    ("notebook",),
)


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
