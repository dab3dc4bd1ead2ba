"""The Realtime protocol: its events, its state machine, the detection of turns, and the WebSocket endpoint."""
