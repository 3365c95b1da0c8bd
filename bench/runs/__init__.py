"""From what is asked for to what is stored: the plan, one run, all runs, what is shown of them."""
