#!/bin/bash
#PBS -N out
#PBS -l select=2
#PBS -l walltime=02:00:00
#PBS -q rt_HF
#PBS -P gaa50000
#PBS -j oe
#PBS -o "/home/me/work/out.job/out.end"
#PBS -r y
# PBS gives jobs one of 077; this is that of who submitted.
umask 0022
source /etc/profile.d/modules.sh
# Starts a script on each node, of which the file of nodes has one line or several.
merge_on_nodes() {
    local place rank=0 places count
    places=$(awk '!seen[$0]++ { print NR - 1 }' "$PBS_NODEFILE")
    count=$(wc -w <<< "$places")
    if [ "$count" -ne 2 ]; then
        printf 'merge-launch: the job got %s nodes, not 2\n' "$count" >&2
        return 6
    fi
    # PBS signals the processes on all nodes by itself.
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
