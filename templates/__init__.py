"""Layout of what vgen writes. Decisions are made in `codegen`; a template only lays out what it is given."""
