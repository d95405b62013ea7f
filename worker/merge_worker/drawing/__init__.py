"""Pictures and pages: what the drawings of several commands have in common. No torch."""
