"""Export trained weights as ONNX files and a deployment package."""

from featherface.cli import run
from featherface.commands import export

if __name__ == "__main__":
    run(export)
