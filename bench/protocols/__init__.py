"""How frozen features become predictions that can be attacked."""
