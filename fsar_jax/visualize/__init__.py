"""Pictures: contact sheets of clips."""
