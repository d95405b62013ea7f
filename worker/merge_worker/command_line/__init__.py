"""The command lines of both programs: their parsers, pages of help, and completion in shells."""
