"""`python -m detkit.cli` is `detkit`."""

from . import main

main()
