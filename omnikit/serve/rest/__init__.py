"""The REST calls: speech, transcriptions, chat completions, models, and the published server's `/chat`."""
