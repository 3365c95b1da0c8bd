"""Every .py file of this folder is one protocol; its file name is its name everywhere."""
