"""The server: OpenAI's Realtime protocol and REST calls, a page with a microphone, and metrics, over one `Omni`."""
