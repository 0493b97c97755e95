"""What the commands measure, as pages for a browser (Jinja templates) and as figures (matplotlib)."""
