"""What the page of each command is made of; the parts are those of reports/pages."""
