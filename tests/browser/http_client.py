"""A browser without a window: what it sends, and its cookie."""

import http.client
import json
from urllib.parse import quote


class Client:
    """One browser: it keeps its cookie."""

    def __init__(self, port):
        self.port, self.cookie, self.headers = port, None, {}

    def send(self, method, path, body=b'', **headers):
        """(status, JSON or text)."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        if self.cookie:
            headers['Cookie'] = self.cookie
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        self.headers = dict(response.getheaders())
        if 'set-cookie' in self.headers:
            self.cookie = self.headers['set-cookie'].split(';')[0]
        content = response.read()
        connection.close()
        is_json = self.headers.get('content-type') == 'application/json'
        return response.status, json.loads(content) if is_json else content.decode()

    def add(self, class_name, path):
        address = f'/examples?class={quote(class_name)}&name={quote(path.name)}'
        return self.send('POST', address, path.read_bytes())

    def answer(self, path):
        return self.send('POST', f'/answer?name={quote(path.name)}', path.read_bytes())

    def classes(self):
        return [found['name'] for found in self.send('GET', '/examples')[1]['classes']]
