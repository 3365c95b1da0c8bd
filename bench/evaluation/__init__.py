"""An encoder scored: cells of protocol, attack and eps, each verified."""
