"""What arXiv:2501.03507 printed, to stand beside our rows."""

SOURCE = "arXiv:2501.03507"

# The results table of arXiv:2501.03507: its rows, and accuracy in % (clean, PGD at 4/255, PGD at 8/255) per data set
PAPER_ROWS = {
    "emp_ssl_patch_adv": "Patch-based EMP-SSL",
    "emp_ssl_adv": "Crop-based EMP-SSL",
    "simclr_adv": "Crop-based SimCLR",
    "simclr_patch_adv": "Patch-based SimCLR",
    "emp_ssl_patch_free": "Patch-based EMP-FreeAdv",
    "simclr_free": "Crop-based SimCLR-FreeAdv",
    "cf_amc_ssl": "CF-AMC-SSL",
}
PAPER = {
    "cifar100": {
        "emp_ssl_patch_adv": (39.26, 14.38, 4.22),
        "emp_ssl_adv": (51.71, 33.88, 19.35),
        "simclr_adv": (44.57, 19.84, 5.68),
        "simclr_patch_adv": (43.71, 21.87, 8.33),
        "emp_ssl_patch_free": (40.31, 23.78, 12.13),
        "simclr_free": (47.64, 26.53, 11.7),
        "cf_amc_ssl": (50.74, 31.73, 17.19),
    },
    "cifar10": {
        "emp_ssl_patch_adv": (61.0, 37.65, 16.95),
        "emp_ssl_adv": (76.55, 53.3, 28.49),
        "simclr_adv": (72.86, 47.98, 16.81),
        "simclr_patch_adv": (65.44, 41.85, 17.19),
        "emp_ssl_patch_free": (61.83, 42.28, 21.53),
        "simclr_free": (70.25, 48.34, 24.5),
        "cf_amc_ssl": (75.88, 55.97, 33.34),
    },
}
PAPER_EPS = (0.0, 4 / 255, 8 / 255)
