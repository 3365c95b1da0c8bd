#!/bin/sh
# Every figure of docs/measurements.md that needs a GPU, in one go: make gpu DATA=parquet:DIR, results in OUT.
# Each step is stored as it ends; the same command goes on where it stopped.
set -eu
DATA=${DATA:-cifar10}
OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"

"$PYTHON" -m bench doctor > "$OUT/doctor.txt"
"$PYTHON" -m pytest -q --gpu --slow -p no:cacheprovider tests/device/test_device.py tests/device/test_precision.py \
    tests/attacks/test_attack_oracles.py > "$OUT/tests.txt" || echo "GPU tests failed: $OUT/tests.txt"

# the step of each method against the textbook one, and the projected minutes of every row of the paper suite
"$PYTHON" -m tests.perf > "$OUT/perf.txt"
# does compiling pay: 200 updates of both kinds, seconds and share of the peak in results.csv
for compile in --compile --no-compile; do
    "$PYTHON" -m bench run --suite paper --methods cf_amc_ssl,emp_ssl_adv,simclr_adv --budget 200up "$compile" \
        --data "$DATA" --eval quick --attacks pgd --protocols linear --out "$OUT/updates$compile"
done

# CF-AMC-SSL at the full recipe; linear and multi_patch, PGD at 4/255 and 8/255, AutoAttack on 1,000, published_eval
time "$PYTHON" -m bench run --suite paper --methods cf_amc_ssl --compile --data "$DATA" --eval standard --out "$OUT/cf_amc_ssl"

# AutoAttack on all 10,000 images, linear
time "$PYTHON" -m bench run --suite paper --methods cf_amc_ssl --compile --data "$DATA" --eval full --protocols linear \
    --attacks autoattack --out "$OUT/autoattack"
