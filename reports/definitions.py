"""What the numbers of the report mean, in the words that stand before its tables."""

from bench.spec import format_eps
from reports.claims import LEVEL, MARGIN, SEEDS


def definitions(main_eps: float) -> list[list[str]]:
    """[name, text] in the order of the report; ``main_eps`` is that of the ranked number."""
    eps = format_eps(main_eps)
    return [
        [
            "The clock",
            "Every run trains for the same budget. On the clock is all that the method does from the first batch "
            "request to the last update: loading, augmentation, copies to the device, its own adversary, forward and "
            "backward passes, the optimizer. Off the clock are imports, the download and decoding of the data, "
            "building the model, warm-up and compilation (reported as compile seconds), checkpoints, the probe and the "
            "evaluation. No update starts that would exceed the budget, and learning-rate schedules follow the share "
            "of the budget that is spent.",
        ],
        [
            "The adversary",
            "It knows the model and moves each test image once, inside an l-inf ball of radius eps and inside the "
            "pixel range; gradients flow through the crops of the multi-patch probe. The ranked number is the worst "
            f"case over PGD and AutoAttack at eps {eps}: the share of images, among those that both attacked, on "
            "which neither succeeded. Where AutoAttack did not run, only PGD is shown (pgd_only): an upper bound, not "
            "ranked.",
        ],
        [
            "The audit",
            "Checks decide whether a ranked number may be trusted: structural ones (the right weights, images and "
            "ball), and attacks of their own, which fail a number if they break images that PGD and AutoAttack left "
            "standing. PASS or FLAG (a warning) is ranked. FAIL, NOT_RUN and off are shown struck through and are not.",
        ],
        [
            "The best known attack",
            "Beside the ranked number stands what is left of it, image by image, under every attack on the image that "
            "ran in its ball: the same norm, this eps or a smaller one, attacks of the user's own and images that the "
            "audit broke among them. It is counted on the images of the ranked number; an attack that saw fewer of "
            "them counts on those it saw. Rows differ in what was tried on them, so it ranks nothing.",
        ],
        [
            "The shift of the features",
            "What an adversary can do to an encoder before any head is fitted: PGD (20 steps of eps/4, one random "
            f"start, no labels) moves the features of each image as far as it can in the l-inf ball at eps {eps}. The "
            "distance is told in mean distances between the clean features of two images. It is measured once for each "
            "encoder on the first 64 test images (quick) or 1,000, and ranks nothing.",
        ],
        [
            "The intervals",
            "95 % Wilson intervals over test images. Seeds share their images, so several seeds narrow no interval: it "
            "belongs to the mean accuracy over the images of one seed. Each speaks of its own line: all lines share "
            "their images, so whether two differ is tested on the pair, image by image, whether intervals overlap or "
            "not.",
        ],
        [
            "The ranks",
            "Of M ranked lines, one stands from 1 + the number that is significantly better to M - the number that is "
            "significantly worse; bold is every line that is not significantly worse than the first. Methods are "
            f"compared with at least {SEEDS} seeds of each at the {LEVEL} evaluation, on one class of hardware: a "
            "t-test with seeds and images both in its error (alpha 5 %, Holm over all pairs), a difference of at least "
            f"{100 * MARGIN:g} points, and the lead at lambda/10, lambda and 10 lambda of the probe. Otherwise the "
            "table ranks encoders, the checkpoints themselves: McNemar's exact test with Holm, at every seed.",
        ],
        [
            "The settings",
            "Each method runs with its settings as published, but for a row that ends in -tuned, whose settings a "
            "search has found. As published, a table compares recipes, not objectives alone.",
        ],
    ]
