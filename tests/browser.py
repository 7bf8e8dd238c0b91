"""A headless Chromium, driven by its own DevTools protocol over a web socket: what a person sees, clicked and typed by a test."""
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
QUIET = ('--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-extensions', '--disable-sync', '--disable-background-networking',
         '--disable-component-update', '--disable-default-apps', '--disable-dev-shm-usage', '--hide-scrollbars', '--remote-debugging-port=0')


class Browser:
    "One page. `requests` are the addresses it asked for, `errors` what its scripts threw."
    def __init__(self, width=1400, height=1000):
        self.folder, self.requests, self.errors, self.count, self.loaded = tempfile.TemporaryDirectory(ignore_cleanup_errors=True), [], [], 0, False
        command = [CHROMIUM, *QUIET, f'--user-data-dir={self.folder.name}', f'--window-size={width},{height}', 'about:blank']
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port()
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json', timeout=30))
        address = next(page['webSocketDebuggerUrl'] for page in pages if page['type'] == 'page')
        self.socket = websocket.create_connection(address, timeout=120, suppress_origin=True)
        for domain in ('Page', 'Runtime', 'Network'): self.send(f'{domain}.enable')
        self.resize(width, height)

    def __enter__(self): return self

    def __exit__(self, *exception):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()

    def _port(self) -> int:
        file, last = Path(self.folder.name)/'DevToolsActivePort', time.monotonic() + 60
        while not file.is_file() or not file.read_text().strip():
            assert self.process.poll() is None and time.monotonic() < last, 'Chromium did not start'
            time.sleep(.05)
        return int(file.read_text().split()[0])

    def send(self, method, **params) -> dict:
        "One command of the protocol; events that come before its answer are noted."
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params)))
        while True:
            message = json.loads(self.socket.recv())
            if message.get('id') == self.count:
                assert 'error' not in message, message
                return message['result']
            self._note(message)

    def _note(self, message):
        kind, params = message.get('method'), message.get('params', {})
        if kind == 'Network.requestWillBeSent': self.requests.append(params['request']['url'])
        if kind == 'Page.loadEventFired': self.loaded = True
        if kind == 'Runtime.exceptionThrown': self.errors.append(params['exceptionDetails'].get('exception', {}).get('description') or params['exceptionDetails']['text'])

    def resize(self, width, height=1000):
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url, seconds=60, ready='', tries=3):
        "Go to a page and wait until it is loaded, or until an expression is true; a page that hangs is asked for again."
        last = time.monotonic() + seconds
        for n in range(1, tries + 1):
            self.loaded = False
            self.send('Page.navigate', url=url)
            while time.monotonic() < last - seconds*(1 - n/tries):
                if self._true(ready or 'true') and (ready or self.loaded): return
                time.sleep(.05)
        raise AssertionError(f'{url} was not loaded in {seconds} seconds: {self.text()[-2000:]}')

    def _true(self, script) -> bool:
        "Whether an expression is true; one that fails, as in a page that is just replaced, is not."
        try: return bool(self.run(script))
        except AssertionError: return False

    def run(self, script):
        "The value of a JavaScript expression; a promise is waited for."
        result = self.send('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in result, result['exceptionDetails']
        return result['result'].get('value')

    def wait(self, script, seconds=30):
        "The value of an expression once it is true."
        last = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < last, f'not so within {seconds} seconds: {script}\n{self.text()[-2000:]}'
            time.sleep(.05)
        return value

    def text(self) -> str: return self.run('document.body.innerText')

    def click(self, selector):
        "Press the left button in the middle of an element, once it stands still."
        script = f'(e => {{ if (!e) return null; e.scrollIntoView({{block: "center"}}); const r = e.getBoundingClientRect(); return r.width ? [r.x + r.width/2, r.y + r.height/2] : null }})(document.querySelector({json.dumps(selector)}))'
        place = None
        while (now := self.wait(script)) != place:
            place = now
            time.sleep(.05)
        for kind in ('mousePressed', 'mouseReleased'): self.send('Input.dispatchMouseEvent', type=kind, x=place[0], y=place[1], button='left', clickCount=1)

    def type(self, selector, text, enter=False):
        "Put text into a field in place of what it holds."
        self.click(selector)
        self.run('document.activeElement.select()')
        self.send('Input.insertText', text=text) if text else self.press('Backspace')
        if enter: self.press('Enter', text='\r')

    def press(self, key, **more):
        "A key of the keyboard."
        code = dict(Enter=13, Backspace=8, ArrowLeft=37, ArrowRight=39)[key]
        for kind in ('keyDown', 'keyUp'):
            self.send('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=code, **(more if kind == 'keyDown' else {}))

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.send('Page.captureScreenshot', format='png')['data']))
