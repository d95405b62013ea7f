#!/bin/bash
#SBATCH --job-name=out
#SBATCH --nodes=4
#SBATCH --ntasks=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gres=gpu:8
#SBATCH --time=1:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --output="/home/me/work/runs/out.job/out.log"
#SBATCH --open-mode=append
#SBATCH --requeue
# Slurm sends USR1 shortly before the time limit; scancel sends TERM.
trap 'merge_warned=1 asked=1; kill -USR1 "${worker:-}" 2> /dev/null || :' USR1
# linear of m1, m2. Made by merge-launch 0.0.0.
#
# This job runs the worker of merge-launch: Python files in one zip archive, compressed with bzip2 and
# encoded as base64, further down. The node does not need merge-launch, only
# bash, coreutils, and Python 3.10 or newer with torch and pyyaml, which also unpacks the worker.
# SHA-256 of the archive, checked before it runs:
#   0eb3e36bfb24dcd9bb1d1bece1531216b59539a8fde17ee80224af0653c92aa3
# To read the worker, write the archive to a file and unpack that with `unzip`:
#   sed -n '/^base64.*_PYZ/,/^MERGE_WORKER_PYZ$/p' THIS_FILE | sed '1d;$d' | base64 -d | bzip2 -d > merge-worker.pyz

# Functions that were exported to this job may stand in place of programs.
unset -f base64 bash builtin cat cd command date exit head kill mktemp printf rm set sha256sum sleep trap wait
merge_folder= merge_line= worker= asked=
merge_stop() {
    printf 'merge-launch: %s\n' "$2" >&2
    exit "$1"
}
merge_fail() {
    merge_line=
    printf 'merge-launch: %s ended with exit code %s: %s\n' "$@" >&2
    # A scheduler signals all processes of a job, this shell perhaps last; its trap then comes here.
    [ "$2" -le 128 ] || sleep 1
    # These codes have a meaning only if merge-worker ends with them.
    case $2 in 0 | [2-6] | 75) exit 1 ;; esac
    exit "$2"
}
finish() {
    local code=$?
    # A signal now would interrupt the cleanup.
    trap '' TERM INT HUP QUIT XCPU USR2 USR1
    [ -z "$merge_line" ] || (merge_fail --setup "$code" "$merge_line") || code=$?
    printf '%s\n' "$code" > /home/me/work/runs/out.job/"${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-job}}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}".exit || :
    [ -z "$merge_folder" ] || rm -rf -- "$merge_folder" || :
    exit "$code"
}
trap finish EXIT
# A signal during --setup or --then is no success; the worker has traps of its own.
trap 'merge_line=; exit 75' TERM INT HUP QUIT XCPU USR2
set -euo pipefail
rm -f -- /home/me/work/runs/out.job/"${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-job}}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}".exit
printf 'merge-launch: begun on %s at %s\n' "$HOSTNAME" "$(date '+%F %T')" >&2

# A folder that every node sees.
merge_folder=$(mktemp -d -- /home/me/work/runs/out.job/run.XXXXXX) || merge_stop 3 'this node does not see the folder that the job was submitted from, or cannot write there'
readonly merge_folder
base64 -d <<'MERGE_WORKER_PYZ' > "$merge_folder/merge-worker.pyz.bz2" || merge_stop 3 'the worker in this job is damaged; submit it again'
cGFja2VkIGFyY2hpdmU=
MERGE_WORKER_PYZ

# The recipes, unchanged.
base64 -d <<'MERGE_RECIPE_YML' > "$merge_folder/recipe.yml" || merge_stop 3 'the recipe in this job is damaged; submit it again'
bWVyZ2VfbWV0aG9kOiBsaW5lYXIKbW9kZWxzOgotIG1vZGVsOiAvaG9tZS9tZS93b3JrL20xCiAg
cGFyYW1ldGVyczoge3dlaWdodDogMS4wfQotIG1vZGVsOiAvaG9tZS9tZS93b3JrL20yCiAgcGFy
YW1ldGVyczoge3dlaWdodDogMS4wfQo=
MERGE_RECIPE_YML

# Check the worker and the recipes before anything else runs.
merge_check() {
    (cd -- "$merge_folder" && sha256sum -c > /dev/null 2>&1) || merge_stop 3 'the worker or recipe in this job is damaged (SHA-256 differs); submit it again'
}
merge_check <<'MERGE_SHA_256'
ce0bd6e2cfc6bfe849dd751744c81b77c6966e9dc4100b646ec8891a99470470  merge-worker.pyz.bz2
d42b53a9900024bfa8979471bbe5c26a8aed1ae41df94973f92d2e093bb7653a  recipe.yml
MERGE_SHA_256

cd -- /home/me/work || merge_stop 3 'this node does not see the folder that the job was submitted from'
# What --setup loads is written for shells without -e and -u: only a line of its own that fails ends
# the job.
merge_source="${BASH_SOURCE[*]-}"
merge_line_failed() {
    [[ $merge_line = *$'\n'* ]] || set -- "$1" "$merge_line"
    merge_fail --setup "$@"
}
set +eu
trap 'merge_code=$?; [ "${BASH_SOURCE[*]-}" != "$merge_source" ] || merge_line_failed "$merge_code" "$BASH_COMMAND"' ERR
merge_line='module load python'
eval "$merge_line"
merge_line=
trap - ERR
set -euo pipefail
# --setup may have set traps of its own.
trap finish EXIT
trap 'merge_line=; exit 75' TERM INT HUP QUIT XCPU USR2

[ -z "${PYTHONHOME:-}" ] || python3 -c '' 2> /dev/null || merge_stop 3 'python3 does not start with this PYTHONHOME; drop it: --setup '"'"'unset PYTHONHOME'"'"''
# Unpack with the Python that runs the worker, which --setup may have loaded. Isolated (-I), so that
# a bz2.py in this folder is not imported.
python3 -I -c 'import bz2, sys
if sys.version_info < (3, 10):
    sys.exit("this is Python " + sys.version)
with bz2.open(sys.argv[1]) as packed, open(sys.argv[2], "wb") as archive:
    archive.write(packed.read())
' "$merge_folder/merge-worker.pyz.bz2" "$merge_folder/merge-worker.pyz" || merge_stop 3 'python3 cannot unpack the worker (the reason is above): requires Python 3.10 or newer with bz2; name one with --python, or load it with --setup'
merge_check <<'MERGE_SHA_256'
0eb3e36bfb24dcd9bb1d1bece1531216b59539a8fde17ee80224af0653c92aa3  merge-worker.pyz
MERGE_SHA_256

# Seconds left until shortly before the walltime, which comes without warning.
merge_deadline=$((3420 > SECONDS ? 3420 - SECONDS : 1))
# Runs once on each node, in the environment that the launcher leaves.
cat > "$merge_folder/rank.sh" <<'MERGE_RANK'
set -euo pipefail
merge_folder=$1 merge_deadline=$2
merge_line=
merge_stop() {
    printf 'merge-launch: %s\n' "$2" >&2
    exit "$1"
}
merge_fail() {
    merge_line=
    printf 'merge-launch: %s ended with exit code %s: %s\n' "$@" >&2
    # A scheduler signals all processes of a job, this shell perhaps last; its trap then comes here.
    [ "$2" -le 128 ] || sleep 1
    # These codes have a meaning only if merge-worker ends with them.
    case $2 in 0 | [2-6] | 75) exit 1 ;; esac
    exit "$2"
}
finish() {
    local code=$?
    [ -z "$merge_line" ] || (merge_fail --setup "$code" "$merge_line") || code=$?
    printf '%s\n' "$code" > "$merge_folder/$HOSTNAME.$$.code"
}
trap finish EXIT
# Keep this shell waiting for the worker, which gets the signal too.
trap : TERM INT HUP USR1
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
cd -- /home/me/work || merge_stop 3 'this node does not see the folder that the job was submitted from'
# What --setup loads is written for shells without -e and -u: only a line of its own that fails ends
# the job.
merge_source="${BASH_SOURCE[*]-}"
merge_line_failed() {
    [[ $merge_line = *$'\n'* ]] || set -- "$1" "$merge_line"
    merge_fail --setup "$@"
}
set +eu
trap 'merge_code=$?; [ "${BASH_SOURCE[*]-}" != "$merge_source" ] || merge_line_failed "$merge_code" "$BASH_COMMAND"' ERR
merge_line='module load python'
eval "$merge_line"
merge_line=
trap - ERR
set -euo pipefail
python3 "$merge_folder/merge-worker.pyz" merge \
    "$merge_folder/recipe.yml" /home/me/work/runs/out \
    --deadline="$merge_deadline" \
    --ranks auto:10m \
    --expect-gpus 8 \
    --recipe-name 'the command' \
    --relative-to /home/me/work
MERGE_RANK
# Schedulers signal every process of a job, containers only this shell: forward the signal, so that
# the worker can stop cleanly, and wait for its end.
stopped=
trap 'asked=1 stopped=1; [ -z "$worker" ] || kill -USR1 "$worker" 2> /dev/null || :' TERM INT HUP QUIT XCPU USR2
srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=32 bash "$merge_folder/rank.sh" "$merge_folder" "${merge_deadline:-}" &
worker=$!
[ -z "$asked" ] || kill -USR1 "$worker" 2> /dev/null || :
while :; do
    asked=
    code=0
    wait "$worker" || code=$?
    [ -n "$asked" ] || break
done
worker=
trap 'merge_line=; exit 75' TERM INT HUP QUIT XCPU USR2
# Launchers have exit codes of their own; the codes that the ranks left count, once all are visible.
merge_patience=$((code == 0 ? 60 : 5))
while :; do
    ended=0 code=0
    for file in "$merge_folder"/*.code; do
        one=$(cat -- "$file" 2> /dev/null) || continue
        ended=$((ended + 1))
        if [ "$one" -ne 75 ] || [ "$code" -eq 0 ]; then [ "$one" -eq 0 ] || code=$one; fi
    done
    merge_patience=$((merge_patience - 1))
    [ "$ended" -lt 4 ] && [ -z "$stopped" ] && [ "$merge_patience" -gt 0 ] || break
    sleep 1
done
if [ "$ended" -lt 4 ]; then
    printf 'merge-launch: %s of 4 ranks finished; the reason is above\n' "$ended" >&2
    [ "$code" -ne 0 ] || code=6
    [ -z "$stopped" ] || code=75
fi
# A worker that the signal killed before its first byte has nothing to clean up; bash 5.2 reports -1
# for one that ended while the signal was being forwarded.
if [ -n "$stopped" ] && [[ $code -gt 128 || $code -lt 0 ]]; then code=75; fi
if [ -n "${merge_warned:-}" ] && [ "$code" -gt 128 ]; then code=75; fi
if [ "$code" -eq 75 ] && [ -z "$stopped" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
    # The time limit is reached. There is no exit code until the next run has ended. Slurm kills this
    # script and its processes before scontrol returns.
    rm -rf -- "$merge_folder"
    trap - EXIT
    echo "merge-launch: time limit reached; requeued (time $((${SLURM_RESTART_COUNT:-0} + 1)) of 10)"
    scontrol requeue "$SLURM_JOB_ID" && exit 75
    trap finish EXIT
fi
[ "$code" -eq 0 ] || exit "$code"
# The manifest is written last: without it nothing here is done.
# What another node has written may be visible here only after a while.
merge_patience=60
for merge_out in /home/me/work/runs/out; do
    until [ -e "$merge_out/merge_manifest.json" ] || [ "$((merge_patience -= 1))" -lt 0 ]; do sleep 1; done
    [ -e "$merge_out/merge_manifest.json" ] || merge_stop 75 "$merge_out holds no finished merge; run the same command to resume"
done

