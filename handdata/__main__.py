"""``python -m handdata``."""

from handdata.cli import main

main()
