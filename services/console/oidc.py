"""Sign-in by the site's own provider: OpenID Connect Core 1.0, authorization code flow with PKCE (RFC 7636)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.console.accounts import NAME
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import OpenIdConnect

ALGORITHMS: Final = ["RS256", "PS256", "ES256", "ES384", "EdDSA"]
"""Signatures that are taken; never "none", never one with a shared secret."""
_SECONDS: Final = 10.0
_SKEW: Final = 60
_CHALLENGE_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a sign-in under way must come back with; kept in a signed cookie."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def new(cls) -> Challenge:
        """Fresh and random."""
        return cls(*(secrets.token_urlsafe(32) for _ in range(3)))

    def sealed(self, key: bytes) -> str:
        """For a cookie."""
        text = f"{self.state}.{self.nonce}.{self.verifier}.{int(time.time())}"
        return f"{text}.{hmac.new(key, text.encode(), 'sha256').hexdigest()}"

    @classmethod
    def opened(cls, cookie: str, key: bytes) -> Challenge | None:
        """Out of a cookie; None where it is not ours, or older than ten minutes."""
        text, _, mac = cookie.rpartition(".")
        if not hmac.compare_digest(mac, hmac.new(key, text.encode(), "sha256").hexdigest()):
            return None
        state, nonce, verifier, made = text.split(".")
        return cls(state, nonce, verifier) if time.time() - int(made) < _CHALLENGE_SECONDS else None


class Provider:
    """The provider of the settings; its documents are read when they are first needed."""

    def __init__(self, settings: OpenIdConnect, *, callback: str) -> None:
        self._settings = settings
        self._callback = callback
        self._metadata: dict[str, Any] | None = None
        self._keys: KeySet | None = None

    async def address(self, challenge: Challenge) -> str:
        """Where the browser is sent."""
        metadata = await self._discovered()
        digest = hashlib.sha256(challenge.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._callback,
            "scope": "openid profile",
            "state": challenge.state,
            "nonce": challenge.nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        return f"{metadata['authorization_endpoint']}?{urlencode(query)}"

    async def person(self, code: str, challenge: Challenge) -> tuple[str, str]:
        """Account and role of who came back with `code`. Raises PERMISSION_DENIED where the provider's word does not
        hold, or names nobody whom the settings let in."""
        metadata = await self._discovered()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "client_id": self._settings.client_id,
            "code_verifier": challenge.verifier,
        }
        if self._settings.client_credential.is_file():
            form["client_secret"] = self._settings.client_credential.read_text("utf-8").strip()
        answer = await self._ask("POST", metadata["token_endpoint"], data=form)
        claims = await self._checked(str(answer.get("id_token", "")), challenge)
        return self._account(claims), self._role(claims)

    async def _discovered(self) -> dict[str, Any]:
        if self._metadata is None:
            issuer = self._settings.issuer
            found = await self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != issuer:  # OpenID Connect Discovery 1.0, 4.3
                raise _refused("the provider gives itself another name than the settings")
            self._metadata = found
        return self._metadata

    async def _checked(self, token: str, challenge: Challenge) -> dict[str, Any]:
        """The claims of an ID token, checked by OpenID Connect Core 1.0, 3.1.3.7."""
        for again in (False, True):
            keys = await self._key_set(again=again)
            try:
                claims = dict(jwt.decode(token, keys, algorithms=ALGORITHMS).claims)
                break
            except (JoseError, ValueError):
                if again:  # the provider may have changed its keys
                    raise _refused("the provider's signature does not hold") from None
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        now = time.time()
        right = (
            claims.get("iss") == self._settings.issuer
            and self._settings.client_id in audiences
            and (len(audiences) == 1 or claims.get("azp") == self._settings.client_id)
            and isinstance(claims.get("exp"), int | float)
            and claims["exp"] > now - _SKEW
            and isinstance(claims.get("iat"), int | float)
            and claims["iat"] < now + _SKEW
            and hmac.compare_digest(str(claims.get("nonce", "")), challenge.nonce)
        )
        if not right:
            raise _refused("the provider's answer is not for this sign-in")
        return claims

    async def _key_set(self, *, again: bool) -> KeySet:
        if self._keys is None or again:
            metadata = await self._discovered()
            found = await self._ask("GET", metadata["jwks_uri"])
            try:
                self._keys = KeySet.import_key_set(found)  # type: ignore[arg-type]
            except (JoseError, ValueError, KeyError, TypeError):
                raise _refused("the provider's keys do not read") from None
        return self._keys

    def _account(self, claims: dict[str, Any]) -> str:
        name = str(claims.get(self._settings.account_claim, "")).split("@")[0].lower()
        name = re.sub(r"[^a-z0-9]+", ".", name).strip(".")
        if not NAME.fullmatch(name) or name == "unknown":
            raise _refused("the provider gives no name that an account can have")
        return name

    def _role(self, claims: dict[str, Any]) -> str:
        groups = claims.get(self._settings.roles_claim)
        for group, role in self._settings.roles.items():
            if groups == group or (isinstance(groups, list) and group in groups):
                return role
        raise _refused("none of your groups may use the console")

    async def _ask(self, method: str, url: str, **given: Any) -> dict[str, Any]:
        verify: Any = str(self._settings.ca) if self._settings.ca.is_file() else True
        try:
            async with httpx.AsyncClient(verify=verify, timeout=_SECONDS, trust_env=False) as client:
                answer = await client.request(method, url, headers={"Accept": "application/json"}, **given)
            found = answer.json()
        except (httpx.HTTPError, ValueError):
            words = "the sign-in provider does not answer"
            raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, words) from None
        if answer.status_code != 200 or not isinstance(found, dict):
            raise _refused("the sign-in provider refused")
        return found


def _refused(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, words)
