"""Options and merges to jobs, to texts, to the scheduler."""
