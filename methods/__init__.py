"""Every .py file of this folder is one method; its file name is its name everywhere."""

GROUPS = {
    # Trained on clean images as they stand; each with any adversary by a setting.
    "clean": ("simclr", "emp_ssl", "byol", "vicreg"),
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
    # What the field compares; published beside the paper's rows, never in one column with them.
    "field": ("rocl", "acl", "dynacl", "advcl", "deacl", "profeat"),
    # Ceilings that read the labels; "all" leaves them out.
    "supervised": ("supervised_pgd", "supervised_free", "supervised_nfgsm"),
}
