"""Every .py file of this folder is one dataset; its file name is its name everywhere."""
