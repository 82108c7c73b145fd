"""The way in: inboxes, episodes as rows, the coordinator, admission."""
