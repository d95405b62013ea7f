#!/bin/bash
# linear of m1, it's. Made by merge-launch 0.0.0.
#
# This job runs the worker of merge-launch: Python files in one zip archive, compressed with bzip2 and
# encoded as base64, further down. The node does not need merge-launch, only
# bash, coreutils, and Python 3.10 or newer with torch and pyyaml, which also unpacks the worker.
# SHA-256 of the archive, checked before it runs:
#   0eb3e36bfb24dcd9bb1d1bece1531216b59539a8fde17ee80224af0653c92aa3
# To read the worker, write the archive to a file and unpack that with `unzip`:
#   sed -n '/^base64.*_PYZ/,/^MERGE_WORKER_PYZ$/p' THIS_FILE | sed '1d;$d' | base64 -d | bzip2 -d > merge-worker.pyz

set -euo pipefail

merge_fail() {
    printf 'merge-launch: %s\n' "$1" >&2
    exit 3
}

merge_folder=$(mktemp -d)
readonly merge_folder
merge_ended=
finish() {
    local code=$?
    # A signal now would interrupt the cleanup.
    trap '' TERM INT HUP USR1
    if [ "$code" -eq 0 ] && [ -z "$merge_ended" ]; then
        printf 'merge-launch: ended before the merge was done; does --setup exit?\n' >&2
        code=1
    fi
    rm -rf -- "$merge_folder" || :
    exit "$code"
}
trap finish EXIT
# A signal during --setup or --then is no success; the worker has traps of its own.
trap 'exit 75' TERM INT HUP USR1

base64 -d <<'MERGE_WORKER_PYZ' > "$merge_folder/merge-worker.pyz.bz2" || merge_fail 'the worker in this job is damaged; submit it again'
cGFja2VkIGFyY2hpdmU=
MERGE_WORKER_PYZ

# The recipes, unchanged.
base64 -d <<'MERGE_RECIPE_YML' > "$merge_folder/recipe.yml" || merge_fail 'the recipe in this job is damaged; submit it again'
ewogIm1lcmdlX21ldGhvZCI6ICJsaW5lYXIiLAogIm1vZGVscyI6IFsKICB7CiAgICJtb2RlbCI6
ICIvaG9tZS9tZS93b3JrL20xIiwKICAgInBhcmFtZXRlcnMiOiB7CiAgICAid2VpZ2h0IjogMS4w
CiAgIH0KICB9LAogIHsKICAgIm1vZGVsIjogIi9ob21lL21lL3dvcmsvaXQncyIsCiAgICJwYXJh
bWV0ZXJzIjogewogICAgIndlaWdodCI6IDEuMAogICB9CiAgfQogXQp9Cg==
MERGE_RECIPE_YML

# Check the worker and the recipes before anything else runs.
merge_check() {
    (cd -- "$merge_folder" && sha256sum -c > /dev/null 2>&1) || merge_fail 'the worker or recipe in this job is damaged (SHA-256 differs); submit it again'
}
merge_check <<'MERGE_SHA_256'
ce0bd6e2cfc6bfe849dd751744c81b77c6966e9dc4100b646ec8891a99470470  merge-worker.pyz.bz2
7fa50a955a6be0778b338f4d45b64d1077bd81f26294389921f85ac39d95b571  recipe.yml
MERGE_SHA_256

cd -- /home/me/work || { printf 'merge-launch: %s\n' 'this node does not see the folder that the job was submitted from' >&2; exit 3; }
export HF_HOME='/scratch/it'"'"'s'
# Scripts of modules and environments use unset variables.
set +u
module load python
source env/bin/activate
set -u

# Unpack with the Python that runs the worker, which --setup may have loaded. Isolated (-I), so that
# a bz2.py in this folder is not imported.
python3 -I -c 'import bz2, sys
if sys.version_info < (3, 10):
    sys.exit("this is Python " + sys.version)
with bz2.open(sys.argv[1]) as packed, open(sys.argv[2], "wb") as archive:
    archive.write(packed.read())
' "$merge_folder/merge-worker.pyz.bz2" "$merge_folder/merge-worker.pyz" || merge_fail 'python3 cannot unpack the worker (the reason is above): requires Python 3.10 or newer with bz2; name one with --python, or load it with --setup'
merge_check <<'MERGE_SHA_256'
0eb3e36bfb24dcd9bb1d1bece1531216b59539a8fde17ee80224af0653c92aa3  merge-worker.pyz
MERGE_SHA_256

# Schedulers signal every process of a job, containers only this shell: forward the signal, so that
# the worker can stop cleanly, and wait for its end.
python3 "$merge_folder/merge-worker.pyz" merge \
    "$merge_folder/recipe.yml" '/home/me/work/my out' \
    --device=cuda \
    --memory=4GiB \
    --relative-to /home/me/work &
worker=$!
stopped=
trap 'asked=1 stopped=1; kill -TERM "$worker" 2> /dev/null || :' TERM INT HUP USR1
while :; do
    asked=
    code=0
    wait "$worker" || code=$?
    [ -n "$asked" ] || break
done
trap 'exit 75' TERM INT HUP USR1
# A worker that the signal killed before its first byte has nothing to clean up; bash 5.2 reports -1
# for one that ended while the signal was being forwarded.
if [ -n "$stopped" ] && [[ $code -gt 128 || $code -lt 0 ]]; then code=75; fi
[ "$code" -eq 0 ] || exit "$code"
merge_ended=1

cd -- '/home/me/work/my out'
set +u
eval 'ls -l'

