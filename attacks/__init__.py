"""Every .py file of this folder is one attack; its file name is its name everywhere."""
