"""What a command asks for: options and suites, refused at the door or resolved into runs."""
