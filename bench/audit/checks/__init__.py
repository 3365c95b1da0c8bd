"""The checks of the audit: structural (S), soundness (A), multi-patch (M). Each is a function of a Subject."""
