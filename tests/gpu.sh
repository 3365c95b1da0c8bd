#!/bin/sh
# Every figure of docs/measurements.md and docs/the-paper.md that needs a GPU: make gpu DATA=parquet:DIR, results in OUT.
# In stages of less than 10 minutes on one H200, by arithmetic: make gpu STAGES="heads log" makes these two. What is stored
# as a stage is stopped is there, and the same command goes on.
set -eu
DATA=${DATA:-cifar10}
OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
STAGES=${STAGES:-heads log released tests perf compile field recipe autoattack}
mkdir -p "$OUT"
bench="$PYTHON -m bench"

for stage in $STAGES; do
    case $stage in
    heads)  # which head explains the paper's table: one encoder, seven heads, the paper's attack
        $bench run --suite paper_heads --compile --data "$DATA" --out "$OUT/heads" ;;
    log)  # calibration: the log of the authors' earlier repository, a row at a time
        for row in patches4-10of30 patches16-10of30 patches4-20of30 patches16-20of30; do
            $bench run --suite paper_log --methods $row --data "$DATA" --out "$OUT/log-$row"
        done ;;
    released)  # CF-AMC-SSL with the faults of the released code, under a clean head and one that saw attacked images
        $bench run --suite paper_as_released --methods cf_amc_ssl-released --data "$DATA" --eval standard --audit off \
            --curve off --attacks pgd --protocols published_eval,clean20=released_mixed,clean20_robust20=released_mixed \
            --set clean20.clean=20 --set clean20.robust=0 --set clean20.clean_again=0 --set clean20_robust20.clean=20 \
            --set clean20_robust20.robust=20 --set clean20_robust20.clean_again=0 --out "$OUT/released" ;;
    tests)
        $bench doctor > "$OUT/doctor.txt"
        "$PYTHON" -m pytest -q --gpu --slow -p no:cacheprovider tests/device/test_device.py \
            tests/device/test_precision.py tests/attacks/test_attack_oracles.py tests/protocols/test_heads.py \
            > "$OUT/tests.txt" || echo "GPU tests failed: $OUT/tests.txt" ;;
    perf)  # the step of each method against the textbook one, and the projected minutes of every row of the paper suite
        "$PYTHON" -m tests.perf > "$OUT/perf.txt" ;;
    compile)  # does compiling pay: 200 updates of both kinds, seconds and share of the peak in results.csv
        for compile in --compile --no-compile; do
            $bench run --suite paper --methods cf_amc_ssl,emp_ssl_adv,simclr_adv --budget 200up "$compile" \
                --data "$DATA" --eval quick --attacks pgd --protocols linear --out "$OUT/updates$compile"
        done ;;
    field)  # the other methods at their full batches: 200 updates each, seconds and share of the peak in results.csv
        $bench run --methods field,clean,supervised --budget 200up --data "$DATA" --eval quick --attacks pgd \
            --protocols linear --out "$OUT/field" ;;
    recipe)  # CF-AMC-SSL at the full recipe under every head: PGD at 4/255 and 8/255, AutoAttack on 1,000
        $bench run --suite paper --methods cf_amc_ssl --compile --data "$DATA" --eval standard --audit core \
            --protocols slf,multi_patch,alf,knn,published_eval --out "$OUT/cf_amc_ssl" ;;
    autoattack)  # on all 10,000 images, linear
        $bench run --suite paper --methods cf_amc_ssl --compile --data "$DATA" --eval full --protocols linear \
            --attacks autoattack --out "$OUT/autoattack" ;;
    *) echo "unknown stage $stage" >&2; exit 2 ;;
    esac
done
