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
    [ -z "$merge_folder" ] || rm -rf -- "$merge_folder" || :
    exit "$code"
}
trap finish EXIT
# A signal during --setup or --then is no success; the worker has traps of its own.
trap 'merge_line=; exit 75' TERM INT HUP QUIT XCPU USR2 USR1
set -euo pipefail

# A folder with room for the worker, packed and unpacked.
merge_room() {
    local place
    for place; do
        [[ $place = /* ]] || place=$PWD/$place
        merge_folder=$(mktemp -d -- "$place/merge-launch.XXXXXX" 2> /dev/null) || continue
        if head -c 160 /dev/urandom > "$merge_folder/room" 2> /dev/null; then
            rm -- "$merge_folder/room"
            [ "${place%/}" != "${1%/}" ] || return 0
            printf 'merge-launch: %s is full, missing or not writable; temporary files go to %s\n' "$1" "$place" >&2
            export TMPDIR=$merge_folder
            return
        fi
        rm -rf -- "$merge_folder"
    done
    merge_folder=
    merge_stop 4 "no space left for 160 bytes of temporary files in $*; make room, or name another folder with --env TMPDIR=FOLDER"
}
merge_room "${TMPDIR:-/tmp}" /tmp
readonly merge_folder
base64 -d <<'MERGE_WORKER_PYZ' > "$merge_folder/merge-worker.pyz.bz2" || merge_stop 3 'the worker in this job is damaged; submit it again'
cGFja2VkIGFyY2hpdmU=
MERGE_WORKER_PYZ

# The recipes, unchanged.
base64 -d <<'MERGE_RECIPE_YML' > "$merge_folder/recipe.yml" || merge_stop 3 'the recipe in this job is damaged; submit it again'
bWVyZ2VfbWV0aG9kOiBsaW5lYXIKbW9kZWxzOgotIG1vZGVsOiAvaG9tZS9tZS93b3JrL20xCiAg
cGFyYW1ldGVyczoge3dlaWdodDogMS4wfQotIG1vZGVsOiAvaG9tZS9tZS93b3JrL2l0J3MKICBw
YXJhbWV0ZXJzOiB7d2VpZ2h0OiAxLjB9Cg==
MERGE_RECIPE_YML

# Check the worker and the recipes before anything else runs.
merge_check() {
    (cd -- "$merge_folder" && sha256sum -c > /dev/null 2>&1) || merge_stop 3 'the worker or recipe in this job is damaged (SHA-256 differs); submit it again'
}
merge_check <<'MERGE_SHA_256'
ce0bd6e2cfc6bfe849dd751744c81b77c6966e9dc4100b646ec8891a99470470  merge-worker.pyz.bz2
54ede4e16867d19bb3c57e5cd3647fa6b052b30376bc392a3b247768f4195203  recipe.yml
MERGE_SHA_256

cd -- /home/me/work || merge_stop 3 'this node does not see the folder that the job was submitted from'
export HF_HOME='/scratch/it'"'"'s'
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
merge_line='source env/bin/activate'
eval "$merge_line"
merge_line=
trap - ERR
set -euo pipefail
# --setup may have set traps of its own.
trap finish EXIT
trap 'merge_line=; exit 75' TERM INT HUP QUIT XCPU USR2 USR1

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

# Schedulers signal every process of a job, containers only this shell: forward the signal, so that
# the worker can stop cleanly, and wait for its end.
stopped=
trap 'asked=1 stopped=1; [ -z "$worker" ] || kill -TERM "$worker" 2> /dev/null || :' TERM INT HUP QUIT XCPU USR2 USR1
python3 "$merge_folder/merge-worker.pyz" merge \
    "$merge_folder/recipe.yml" '/home/me/work/my out' \
    --device=cuda \
    --memory=4GiB \
    --recipe-name 'the command' \
    --relative-to /home/me/work &
worker=$!
[ -z "$asked" ] || kill -TERM "$worker" 2> /dev/null || :
while :; do
    asked=
    code=0
    wait "$worker" || code=$?
    [ -n "$asked" ] || break
done
worker=
trap 'merge_line=; exit 75' TERM INT HUP QUIT XCPU USR2 USR1
# A worker that the signal killed before its first byte has nothing to clean up; bash 5.2 reports -1
# for one that ended while the signal was being forwarded.
if [ -n "$stopped" ] && [[ $code -gt 128 || $code -lt 0 ]]; then code=75; fi
[ "$code" -eq 0 ] || exit "$code"
# The manifest is written last: without it nothing here is done.
for merge_out in '/home/me/work/my out'; do
    [ -e "$merge_out/merge_manifest.json" ] || merge_stop 75 "$merge_out holds no finished merge; run the same command to resume"
done

cd -- '/home/me/work/my out'
set +e
(
    # Scripts of environments use unset variables.
    set -e +u
    eval 'ls -l'
)
code=$?
[ "$code" -eq 0 ] || merge_fail '--then (bash -e -o pipefail)' "$code" 'ls -l'

