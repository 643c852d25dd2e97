"""A token server for docker-registry (distribution's docs, spec/auth/token.md, jwt.md and oauth.md)."""

import base64
import datetime
import http.server
import ipaddress
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.registry import PASSWORD

_ISSUER, _SERVICE = "tests", "registry"


@dataclass(slots=True)
class TokenServer:
    """On a port of 127.0.0.1; a context manager."""

    base: Path
    lifetime: int = 60
    """Seconds for which a token holds."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """What the granted requests were."""
    _key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    _certificate: bytes = b""
    _server: http.server.ThreadingHTTPServer | None = None

    def __enter__(self) -> "TokenServer":
        made = _signed(self._key, _ISSUER)
        self._certificate = made.public_bytes(serialization.Encoding.DER)
        (self.base / "issuer.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def auth(self) -> dict[str, Any]:
        """The section of the registry's configuration."""
        assert self._server is not None
        realm = f"http://127.0.0.1:{self._server.server_port}/token"
        bundle = str(self.base / "issuer.pem")
        return {"token": {"realm": realm, "service": _SERVICE, "issuer": _ISSUER, "rootcertbundle": bundle}}

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = dict(urllib.parse.parse_qsl(urllib.parse.urlparse(self.path).query))
                word = "Basic " + base64.b64encode(f"agent:{PASSWORD}".encode()).decode()
                self._answer(query, "token", fine=self.headers.get("Authorization") == word)

            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                query = dict(urllib.parse.parse_qsl(form))
                self._answer(query, "access_token", fine=query.get("refresh_token") == "refresh")

            def _answer(self, query: dict[str, str], name: str, *, fine: bool) -> None:
                data = json.dumps({name: server.token(query)} if fine else {"errors": []}).encode()
                self.send_response(200 if fine else 401)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        return Handler

    def token(self, query: dict[str, str]) -> str:
        """A token for what is asked."""
        self.asked.append(query)
        access = []
        for scope in query.get("scope", "").split():
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(self._certificate).decode()]}
        claims = {
            "iss": _ISSUER, "sub": "agent", "aud": query.get("service", ""), "exp": now + self.lifetime,
            "nbf": now - 5, "iat": now, "jti": str(len(self.asked)), "access": access,
        }  # fmt: skip
        signed = b".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return b".".join([signed, _encoded(signature)]).decode()


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _signed(key: rsa.RSAPrivateKey, name: str) -> x509.Certificate:
    """A certificate that is its own authority."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip


def certificate(base: Path) -> dict[str, str]:
    """The files of a server's certificate for 127.0.0.1, as docker-registry is told of them."""
    key = rsa.generate_private_key(65537, 2048)
    (base / "tls.crt").write_bytes(_signed(key, "registry").public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (base / "tls.key").write_bytes(data)
    return {"certificate": str(base / "tls.crt"), "key": str(base / "tls.key")}
