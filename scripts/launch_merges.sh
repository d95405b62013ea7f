#!/usr/bin/env bash
# Several merges as one batch: copy this file, change the lists, run it. Running it again is safe: a
# finished merge is a no-op, an interrupted one resumes.
#
#   scripts/launch_merges.sh                    merge here, one after the other
#   scripts/launch_merges.sh pbs                one PBS job for each merge
#   scripts/launch_merges.sh slurm --dry-run    the jobs as text, nothing submitted
#   MODELS=/data/models scripts/launch_merges.sh beaker --image me/torch --weka my-bucket:/data
set -euo pipefail

backend=${1:-local}
[ $# -eq 0 ] || shift
options=("$@")

models=${MODELS:-models}   # the folder that holds the models
merged=${MERGED:-merged}   # the folder that gets the merges

# Resources of each kind of job.
case $backend in
    local)  resources=() ;;
    pbs)    resources=(--ncpus 16 --mem 64g --walltime 04:00:00) ;;
    slurm)  resources=(--cpus 16 --mem 64G --time 04:00:00) ;;
    beaker) resources=(--priority normal --timeout 4h) ;;
    *)      echo "usage: $0 [local|pbs|slurm|beaker] [options of merge-launch]" >&2; exit 2 ;;
esac

failed=()

# launch NAME WORDS…: one merge into $merged/NAME. A failure is noted, and the others still run.
launch() {
    local name=$1
    shift
    echo "== $name" >&2
    merge-launch "$backend" "$@" --out "$merged/$name" \
        ${resources[@]+"${resources[@]}"} ${options[@]+"${options[@]}"} || failed+=("$name")
}

# 1. The plain average of three fine-tunes.
launch soup "$models/math" "$models/code" "$models/chat"

# 2. Averages with increasing weight of one model.
for weight in 1 2 4; do
    launch "math-$weight" "$models/math" "$models/code" "$models/chat" --weights "$weight,1,1"
done

# 3. All recipes of a folder, if it exists; a recipe names its models.
for recipe in recipes/*.yml; do
    [ -e "$recipe" ] || continue
    launch "$(basename "$recipe" .yml)" "$recipe"
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
