"""A closed-form item–item model as a member of the fusion."""
