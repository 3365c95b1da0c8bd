"""``python -m bench``, also from a checkout that is not installed."""

from bench.cli import main

main()
