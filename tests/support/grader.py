"""A judge of generated texts behind an OpenAI-compatible address."""

import json
from http.server import BaseHTTPRequestHandler


class Grader(BaseHTTPRequestHandler):
    """An OpenAI-compatible address that says YES to Rome, fails for Paris and talks otherwise."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], asked))
        expected = asked["messages"][0]["content"].split("Expected: ")[1].split("\n")[0]
        status = 500 if expected == "Paris" and not self.server.mended else 200
        said = "<think>Or no?</think> YES." if expected in ("Rome", "Paris") else "Not sure"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass
