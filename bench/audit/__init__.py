"""Whether a ranked number can be trusted: the checks, the transfer of attacks, recomputing."""
