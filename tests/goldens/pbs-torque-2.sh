#!/bin/bash
#PBS -N out
#PBS -l nodes=2:ppn=16:gpus=2
#PBS -l mem=160gb
#PBS -l walltime=02:00:00
#PBS -A ab12
#PBS -j oe
#PBS -o "/home/me/work/out.job/out.end"
#PBS -r y
# The umask at submission; PBS would set 077.
umask 0022
# Starts a script once on each node; a node may have several lines in the node file.
merge_on_nodes() {
    local place rank=0 places count
    places=$(awk '!seen[$0]++ { print NR - 1 }' "$PBS_NODEFILE")
    count=$(wc -w <<< "$places")
    if [ "$count" -ne 2 ]; then
        printf 'merge-launch: the job got %s nodes, not 2\n' "$count" >&2
        return 6
    fi
    # PBS itself signals the processes on all nodes.
    trap : TERM
    for place in $places; do
        pbsdsh -n "$place" -- /bin/bash -l "$@" "$rank" 2 &
        rank=$((rank + 1))
    done
    while [ -n "$(jobs -pr)" ]; do wait || :; done
}
exec >> /home/me/work/out.job/out.log 2>&1
export RANK=$3 WORLD_SIZE=$4
merge_on_nodes "$merge_folder/rank.sh" "$merge_folder" "${merge_deadline:-}" &
