# Shared by the fakes of scheduler commands. Each call adds a line to $FAKES/calls; a test that wants
# another answer writes $FAKES/NAME.out, NAME.err and NAME.status.
name=${0##*/}
printf '%s\n' "$name$(printf ' %q' "$@")" >> "$FAKES/calls"

if [ -e "$FAKES/$name.status" ]; then
    cat "$FAKES/$name.out" 2> /dev/null
    cat "$FAKES/$name.err" >&2 2> /dev/null
    exit "$(cat "$FAKES/$name.status")"
fi

refuse() {
    printf '%s: %s\n' "$name" "$1" >&2
    exit "$2"
}

# The directives of a job: those above the first line that is neither comment nor blank.
directives() {
    sed -n '/^[^#]/q; s/^#'"$1"' //p' "$2"
}

# Runs a job as a scheduler does, in an environment of its own, and keeps its end.
run_job() {
    local id=$1 script=$2 log=$3 code=0
    shift 3
    env -i PATH="$PATH" HOME="$HOME" "$@" bash "$script" >> "$log" 2>&1 < /dev/null || code=$?
    printf '%s\n' "$code" > "$FAKES/$id.ended"
}

# A Slurm that has no database of clusters knows none by name.
other_cluster() {
    refuse "error: No cluster '${1#*=}' known by database." 1
}

# Time of submission, user and name of a job of Slurm.
origin() {
    cat "$FAKES/${1%%_*}.origin" 2> /dev/null || echo "2026-01-02T03:04:05|$UID|unnamed"
}
