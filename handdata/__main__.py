"""Run the command line as ``python -m handdata``."""

from handdata.cli import main

main()
