"""python -m featherface is the command featherface; torchrun -m featherface needs this form."""

from featherface.commands import main

if __name__ == "__main__":
    main()
