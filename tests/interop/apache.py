"""Apache httpd in front of the gateway and behind it, with the shipped includes."""

from __future__ import annotations

import ssl
import subprocess
import tempfile
from pathlib import Path

from tests.interop.process import Process, accepts, free_port

INCLUDE = Path(__file__).resolve().parents[2] / "apache" / "wsgate.conf"
MODULES = Path("/usr/lib/apache2/modules")
CONFIG = """
ServerName localhost
ServerRoot {directory}
PidFile {directory}/httpd.pid
DefaultRuntimeDir {directory}
ErrorLog {directory}/error.log
LogLevel warn
Listen 127.0.0.1:{port}
Listen 127.0.0.1:{plain_port}
User {user}
Group {group}
StartServers 1
ServerLimit 2
ThreadsPerChild 25
MaxRequestWorkers 50
{modules}
RequestReadTimeout header=5-10,minrate=500 body=2,minrate=500
TransferLog {directory}/access.log
Timeout 60
Define WSGATE_BACKEND {backend}
{define}
<VirtualHost 127.0.0.1:{port}>
    SSLEngine on
    SSLCertificateFile {certificate}
    SSLCertificateKeyFile {key}
    Include {include}
    {site}
</VirtualHost>
<VirtualHost 127.0.0.1:{plain_port}>
    Include {include}
</VirtualHost>
"""
BEHIND = INCLUDE.with_name("behind.conf")
BEHIND_CONFIG = """
ServerName localhost
ServerRoot {directory}
PidFile {directory}/httpd.pid
DefaultRuntimeDir {directory}
ErrorLog {directory}/error.log
LogLevel warn
Listen 127.0.0.1:{port}
User www-data
Group www-data
StartServers 1
ServerLimit 2
ThreadsPerChild 25
MaxRequestWorkers 50
{modules}
TypesConfig /dev/null
AddType text/html .html
ScriptSock {directory}/cgid.sock
LogFormat "%a %s %r" plain
CustomLog {directory}/access.log plain
<VirtualHost 127.0.0.1:{port}>
    ServerName https://www.example.com
    UseCanonicalName Off
    DocumentRoot {directory}/site
    DirectoryIndex index.html
    <Directory {directory}/site>
        Require all granted
    </Directory>
    ScriptAlias /cgi/ {directory}/cgi/
    <Directory {directory}/cgi>
        Require all granted
    </Directory>
    ProxyPass /chat http://127.0.0.1:{application}/chat upgrade=websocket
    Include {include}
</VirtualHost>
"""
BEHIND_LOADED = (
    "mpm_event",
    "authz_core",
    "alias",
    "cgid",
    "dir",
    "env",
    "mime",
    "proxy",
    "proxy_http",
    "remoteip",
    "setenvif",
)
CGI = """#!{python}
import hashlib, os, sys
size, digest = 0, hashlib.sha256()
while data := sys.stdin.buffer.read(65536):
    size += len(data)
    digest.update(data)
print("Content-Type: text/plain\\r\\n\\r\\n", end="")
print(size, digest.hexdigest())
for name in ("REMOTE_ADDR", "HTTPS", "HTTP_X_REAL_IP", "HTTP_X_FORWARDED_HOST", "HTTP_FORWARDED", "REQUEST_URI"):
    print(name, os.environ.get(name, "-"))
"""
LOADED = ("mpm_event", "authz_core", "reqtimeout", "headers", "ssl", "socache_shmcb", "proxy")


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and 127.0.0.1 and its key, as files."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "test.crt", directory / "test.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    output = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *kind, *subject, *output], check=True, capture_output=True)
    return certificate, key


class Apache:
    """httpd with TLS on `port` and without on `plain_port`, relaying /ws to `backend` (host:port).

    `wstunnel` takes mod_proxy_wstunnel, as httpd before 2.4.47 must; otherwise mod_proxy_http with upgrade=websocket.
    `site` are further lines of the virtual host with TLS, `modules` what they need.
    """

    def __init__(
        self, directory: Path, backend: str, *, wstunnel: bool, site: str = "", modules: tuple[str, ...] = ()
    ) -> None:
        self.certificate, key = make_certificate(directory)
        self.port, self.plain_port = free_port(), free_port()
        directory.chmod(0o755)
        loaded = [*LOADED, "proxy_wstunnel" if wstunnel else "proxy_http", *modules]
        self._directory = directory
        config = directory / "httpd.conf"
        config.write_text(
            CONFIG.format(
                directory=directory,
                port=self.port,
                plain_port=self.plain_port,
                user="www-data",
                group="www-data",
                modules="\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in loaded),
                backend=backend,
                define="Define WSGATE_WSTUNNEL" if wstunnel else "",
                certificate=self.certificate,
                key=key,
                include=INCLUDE,
                site=site,
            )
        )
        self._process = Process(["apache2", "-d", directory, "-f", config, "-DFOREGROUND"], directory / "httpd.log")
        self._process.ready(lambda: accepts("127.0.0.1", self.port))

    @property
    def url(self) -> str:
        """Where a browser connects."""
        return f"wss://127.0.0.1:{self.port}/ws"

    @property
    def tls(self) -> ssl.SSLContext:
        """A context that trusts the test's certificate alone."""
        return ssl.create_default_context(cafile=str(self.certificate))

    @property
    def log(self) -> str:
        """The error log."""
        path = self._directory / "error.log"
        return path.read_text() if path.exists() else self._process.output

    def stop(self) -> None:
        """End httpd and its children."""
        self._process.stop()


class ApacheBehind:
    """httpd without TLS on loopback, as it stands behind wsgate: a site with pages, a CGI program and a WebSocket.

    `site` is the directory of its pages; `application` the port of what answers at /chat.
    """

    def __init__(self, application: int = 9) -> None:
        # www-data reads the pages: not below the test's own directory, which lets nobody pass.
        self._place = tempfile.TemporaryDirectory(prefix="wsgate-apache-")
        directory = Path(self._place.name)
        directory.chmod(0o755)
        self.port = free_port()
        self.site = directory / "site"
        (directory / "cgi").mkdir()
        (self.site / "below").mkdir(parents=True)
        (self.site / "index.html").write_text("<!doctype html><title>Apache</title>It works behind wsgate.\n")
        (self.site / "below" / "index.html").write_text("<!doctype html><title>Below</title>\n")
        program = directory / "cgi" / "echo"
        program.write_text(CGI.format(python="/usr/bin/python3"))
        program.chmod(0o755)
        self._directory = directory
        config = directory / "httpd.conf"
        config.write_text(
            BEHIND_CONFIG.format(
                directory=directory,
                port=self.port,
                modules="\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in BEHIND_LOADED),
                application=application,
                include=BEHIND,
            )
        )
        self.start()

    def start(self) -> None:
        """Run httpd, again after `stop`."""
        command = ["apache2", "-d", self._directory, "-f", self._directory / "httpd.conf", "-DFOREGROUND"]
        self._process = Process(command, self._directory / "httpd.log")
        self._process.ready(lambda: accepts("127.0.0.1", self.port))

    @property
    def access_log(self) -> str:
        """Address, status and request line of each request."""
        return (self._directory / "access.log").read_text()

    def stop(self) -> None:
        """End httpd and its children."""
        self._process.stop()

    def close(self) -> None:
        """End it and remove its files."""
        self.stop()
        self._place.cleanup()
