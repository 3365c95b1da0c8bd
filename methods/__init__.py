"""Every .py file of this folder is one method; its file name is its name everywhere."""

GROUPS = {
    # The seven rows of the paper's results table (arXiv:2501.03507), in its order.
    "paper": (
        "emp_ssl_patch_adv",
        "emp_ssl_adv",
        "simclr_adv",
        "simclr_patch_adv",
        "emp_ssl_patch_free",
        "simclr_free",
        "cf_amc_ssl",
    ),
    # Ceilings that read the labels; "all" leaves them out.
    "supervised": ("supervised_free", "supervised_pgd"),
}
