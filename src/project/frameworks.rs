//! The frameworks that applications are written with, and how they are known. Pure.

/// A framework that applications are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framework {
    FastApi,
    Starlette,
    Litestar,
    Quart,
    Django,
    Flask,
    /// Another one, or none.
    Other,
}

impl Framework {
    pub fn name(self) -> &'static str {
        match self {
            Self::FastApi => "FastAPI",
            Self::Starlette => "Starlette",
            Self::Litestar => "Litestar",
            Self::Quart => "Quart",
            Self::Django => "Django",
            Self::Flask => "Flask",
            Self::Other => "ASGI",
        }
    }
}

/// How the application is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interface {
    Asgi,
    Wsgi,
}

/// Classes of applications, and functions that make them, by where they come from.
pub const KNOWN: [(&str, Framework, Interface); 21] = [
    ("fastapi.FastAPI", Framework::FastApi, Interface::Asgi),
    ("fastapi.applications.FastAPI", Framework::FastApi, Interface::Asgi),
    ("starlette.applications.Starlette", Framework::Starlette, Interface::Asgi),
    ("litestar.Litestar", Framework::Litestar, Interface::Asgi),
    ("litestar.app.Litestar", Framework::Litestar, Interface::Asgi),
    ("quart.Quart", Framework::Quart, Interface::Asgi),
    ("quart_trio.QuartTrio", Framework::Quart, Interface::Asgi),
    ("django.core.asgi.get_asgi_application", Framework::Django, Interface::Asgi),
    ("channels.routing.ProtocolTypeRouter", Framework::Django, Interface::Asgi),
    ("django.core.wsgi.get_wsgi_application", Framework::Django, Interface::Wsgi),
    ("flask.Flask", Framework::Flask, Interface::Wsgi),
    ("falcon.asgi.App", Framework::Other, Interface::Asgi),
    ("sanic.Sanic", Framework::Other, Interface::Asgi),
    ("blacksheep.Application", Framework::Other, Interface::Asgi),
    ("blacksheep.server.Application", Framework::Other, Interface::Asgi),
    ("esmerald.Esmerald", Framework::Other, Interface::Asgi),
    ("connexion.AsyncApp", Framework::Other, Interface::Asgi),
    ("connexion.FlaskApp", Framework::Other, Interface::Asgi),
    ("socketio.ASGIApp", Framework::Other, Interface::Asgi),
    ("asgiref.wsgi.WsgiToAsgi", Framework::Other, Interface::Asgi),
    ("a2wsgi.WSGIMiddleware", Framework::Other, Interface::Asgi),
];

/// The framework of what `full` names, such as `fastapi.FastAPI`.
pub fn known(full: &str) -> Option<(Framework, Interface)> {
    KNOWN.iter().find(|(name, ..)| *name == full).map(|(_, framework, interface)| (*framework, *interface))
}
