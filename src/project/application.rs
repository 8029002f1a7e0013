//! Which ASGI application a project has, found as `fastapi dev` finds it and for every framework.
//!
//! In this order, and what is found first counts: what `pyproject.toml` says (`[tool.fastapi] entrypoint`); a command that
//! starts a server, in a `Procfile`, a `Dockerfile` or a task; applications in files with the usual names; functions that
//! make one. Of what is found in one step, an application that another one imports is a part of that one.

use std::path::{Path, PathBuf};

pub use super::frameworks::{Framework, Interface};
use super::frameworks::{KNOWN, known};
use super::layout::{packages, parts};
use super::module::{Module, names_app};
use super::{Found, Manifest, Seen, commands, files};

/// An application, as a server is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// `module:attribute`.
    pub app: String,
    /// Where its imports start, as a path from the project's directory; empty: there.
    pub app_dir: PathBuf,
    pub framework: Framework,
    pub interface: Interface,
    /// Whether the attribute is a function that makes it.
    pub is_factory: bool,
}

/// Names that an application has as a rule, the most usual first.
const NAMES: [&str; 4] = ["app", "api", "application", "asgi"];

/// Names of functions that make one.
const FACTORIES: [&str; 13] = [
    "create_app",
    "make_app",
    "get_app",
    "build_app",
    "app_factory",
    "create_application",
    "make_application",
    "get_application",
    "build_application",
    "create_asgi_app",
    "create_api",
    "make_asgi_app",
    "get_asgi_application",
];

/// Files that have the application as a rule.
const FILES: [&str; 9] = ["main", "app", "api", "asgi", "server", "application", "web", "run", "wsgi"];

/// Packages within a package that do.
const INNER: [&str; 6] = ["api", "app", "web", "server", "core", "http"];

/// How much a finding says, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// An application of a framework that is known.
    Instance,
    /// A function that makes one.
    Factory,
    /// A name that applications have, for what some other part of the project makes.
    Name,
    /// One that is called as WSGI.
    Wsgi,
}

struct Candidate {
    application: Application,
    seen: Seen,
    weight: Weight,
    /// The module that has it.
    module: String,
    /// What that module imports, by its full name.
    imports: Vec<String>,
}

/// A file that may have the application.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// From the project's directory.
    file: PathBuf,
    app_dir: PathBuf,
    module: String,
}

/// The applications of the project in `directory` that may be meant.
pub fn find(directory: &Path, manifest: &Manifest) -> Vec<Found<Application>> {
    if let Some(written) = manifest.text(&["tool", "fastapi", "entrypoint"]).filter(|it| names_app(&it.value)) {
        let application = named(directory, Path::new(""), &written.value, Framework::FastApi);
        return vec![Found::new(application, written.seen)];
    }
    let here = in_root(directory, Path::new(""), manifest);
    if !here.is_empty() {
        return here;
    }
    parts(directory).iter().flat_map(|part| in_root(directory, part, &part_manifest(directory, part))).collect()
}

/// The manifest of a part; one that cannot be understood says nothing.
fn part_manifest(directory: &Path, part: &Path) -> Manifest {
    Manifest::read(directory, &part.join("pyproject.toml")).unwrap_or_default()
}

fn in_root(directory: &Path, root: &Path, manifest: &Manifest) -> Vec<Found<Application>> {
    let said = commands::applications(directory, root, manifest);
    let mut told: Vec<Found<Application>> = Vec::new();
    for found in said {
        let application = named(directory, root, &found.value, Framework::Other);
        let is_there = file_of(directory, &application).is_some();
        if is_there && !told.iter().any(|it| it.value.app == application.app) {
            told.push(Found::new(application, found.seen));
        }
    }
    if !told.is_empty() {
        return told;
    }
    let mut candidates: Vec<Candidate> = Vec::new();
    let django = super::migrations::manage(directory, root);
    let django = django.iter().flat_map(|manage| of_django(directory, manage));
    for place in django.chain(places(directory, root, manifest)) {
        if !candidates.iter().any(|it| it.module == place.module && it.application.app_dir == place.app_dir) {
            candidates.extend(of_file(directory, &place));
        }
    }
    if candidates.is_empty() {
        candidates = single_files(directory, root).iter().flat_map(|place| of_file(directory, place)).collect();
    }
    chosen(candidates)
}

/// Those of the candidates that weigh most, without parts of others.
fn chosen(mut candidates: Vec<Candidate>) -> Vec<Found<Application>> {
    let Some(weight) = candidates.iter().map(|it| it.weight).min() else { return Vec::new() };
    candidates.retain(|it| it.weight == weight);
    let is_part = |it: &Candidate| {
        let within = format!("{}.", it.module);
        let imports_it = |name: &String| *name == it.module || name.starts_with(&within);
        candidates.iter().any(|other| other.module != it.module && other.imports.iter().any(imports_it))
    };
    let whole: Vec<bool> = candidates.iter().map(|it| !is_part(it)).collect();
    let any = whole.contains(&true);
    // What `manage.py` names comes first; another `asgi.py` of Django's is some other project's.
    let first_django = candidates.iter().position(|it| it.application.framework == Framework::Django);
    let kept = candidates.into_iter().zip(whole).enumerate().filter(|(at, (it, whole))| {
        let is_other_django = it.application.framework == Framework::Django && first_django != Some(*at);
        (*whole || !any) && !is_other_django
    });
    kept.map(|(_, (it, _))| Found::new(it.application, it.seen)).collect()
}

/// The application that `app` names, below `root`: imports start where its module is found.
fn named(directory: &Path, root: &Path, app: &str, framework: Framework) -> Application {
    let app_dir = [root.to_path_buf(), root.join("src")];
    let at = |app_dir: &PathBuf| Application {
        app: app.to_owned(),
        app_dir: app_dir.clone(),
        framework,
        interface: Interface::Asgi,
        is_factory: false,
    };
    let there = app_dir.iter().map(at).find(|it| file_of(directory, it).is_some());
    let mut application = there.unwrap_or_else(|| at(&app_dir[0]));
    // What the file says of it.
    if let Some(file) = file_of(directory, &application) {
        let (module, attribute) = app.split_once(':').unwrap_or((app, ""));
        let place = Place { file, app_dir: application.app_dir.clone(), module: module.to_owned() };
        let known = of_file(directory, &place).into_iter().map(|it| it.application);
        if let Some(known) = known.into_iter().find(|it| it.app.ends_with(&format!(":{attribute}"))) {
            application.framework = if framework == Framework::Other { known.framework } else { framework };
            application.is_factory = known.is_factory;
        }
    }
    application
}

/// The file of an application's module, if there is one.
fn file_of(directory: &Path, application: &Application) -> Option<PathBuf> {
    let module = application.app.split(':').next().unwrap_or_default();
    let path = application.app_dir.join(module.replace('.', "/"));
    [path.with_extension("py"), path.join("__init__.py")].into_iter().find(|path| directory.join(path).is_file())
}

/// The files with the usual names.
fn places(directory: &Path, root: &Path, manifest: &Manifest) -> Vec<Place> {
    let mut found = Vec::new();
    let parts = if root.as_os_str().is_empty() { parts(directory) } else { Vec::new() };
    for app_dir in [root.to_path_buf(), root.join("src")] {
        let here = directory.join(&app_dir);
        let mut add = |module: String| {
            let application = Application {
                app: module.clone(),
                app_dir: app_dir.clone(),
                framework: Framework::Other,
                interface: Interface::Asgi,
                is_factory: false,
            };
            if let Some(file) = file_of(directory, &application) {
                let place = importable(directory, Place { file, app_dir: app_dir.clone(), module });
                if !found.contains(&place) {
                    found.push(place);
                }
            }
        };
        if app_dir.ends_with("src") && here.join("__init__.py").exists() {
            continue;
        }
        // The functions that `[project.scripts]` names often lie beside the application.
        let scripts = ["project.scripts", "tool.poetry.scripts"].map(|path| path.split('.').collect::<Vec<_>>());
        let scripts = scripts.iter().flat_map(|path| manifest.texts(path));
        scripts.filter_map(|it| Some(it.value.split_once(':')?.0.to_owned())).for_each(&mut add);
        FILES.iter().for_each(|file| add((*file).to_owned()));
        for package in packages(&here) {
            if parts.iter().any(|part| part == Path::new(&package)) || package == "src" {
                continue;
            }
            FILES.iter().for_each(|file| add(format!("{package}.{file}")));
            add(package.clone());
            for inner in INNER {
                FILES[..4].iter().for_each(|file| add(format!("{package}.{inner}.{file}")));
            }
        }
    }
    found
}

/// Other files of `root`, for a project that is one file.
fn single_files(directory: &Path, root: &Path) -> Vec<Place> {
    let is_other = |name: &&str| {
        let is_test = name.starts_with("test_") || name.ends_with("_test");
        !is_test && !["setup", "conftest", "manage", "noxfile", "fabfile", "tasks"].contains(name)
    };
    let names = files::names(&directory.join(root));
    let modules = names.iter().filter_map(|name| name.strip_suffix(".py")).filter(is_other);
    modules
        .map(|name| Place {
            file: root.join(format!("{name}.py")),
            app_dir: root.to_path_buf(),
            module: name.to_owned(),
        })
        .collect()
}

/// `place` as its own imports want it: a directory without `__init__.py` is a package to some projects, and the place where
/// imports start to others.
fn importable(directory: &Path, place: Place) -> Place {
    let Some((package, module)) = place.module.split_once('.').filter(|(_, rest)| !rest.contains('.')) else {
        return place;
    };
    let dir = place.app_dir.join(package);
    if directory.join(&dir).join("__init__.py").exists() {
        return place;
    }
    let imported = Module::read(&files::text(&directory.join(&place.file)).unwrap_or_default()).imported;
    let first = |name: &String| name.split('.').next().unwrap_or_default().to_owned();
    let says_package = imported.iter().any(|name| first(name) == package || name.starts_with('.'));
    let is_beside = |name: &String| {
        let beside = directory.join(&dir).join(first(name));
        !first(name).is_empty() && (beside.with_extension("py").is_file() || beside.is_dir())
    };
    if says_package || !imported.iter().any(is_beside) {
        return place;
    }
    Place { module: module.to_owned(), app_dir: dir, ..place }
}

/// The applications of the Django project whose `manage.py` is `manage`: the one beside the settings that it names.
fn of_django(directory: &Path, manage: &Path) -> Vec<Place> {
    let app_dir = manage.parent().unwrap_or(Path::new("")).to_path_buf();
    let settings = super::migrations::settings_module(directory, manage);
    let package = settings.as_deref().and_then(|settings| settings.split('.').next()).map(str::to_owned);
    let packages = package.map_or_else(|| packages(&directory.join(&app_dir)), |package| vec![package]);
    let files = packages.iter().flat_map(|package| ["asgi", "wsgi"].map(|file| format!("{package}.{file}")));
    let place = |module: String| {
        let file = app_dir.join(module.replace('.', "/")).with_extension("py");
        directory.join(&file).is_file().then(|| Place { file, app_dir: app_dir.clone(), module })
    };
    files.filter_map(place).collect()
}

/// The applications that the file of `place` has.
fn of_file(directory: &Path, place: &Place) -> Vec<Candidate> {
    let Some(text) = files::text(&directory.join(&place.file)) else { return Vec::new() };
    let module = Module::read(&text);
    let is_own = |name: &str| {
        let first = name.split('.').next().unwrap_or_default();
        let path = directory.join(&place.app_dir).join(first);
        name.starts_with('.') || (!first.is_empty() && (path.is_dir() || path.with_extension("py").is_file()))
    };
    let mut definitions = definitions(&module, &is_own);
    let Some(weight) = definitions.iter().map(|it| it.weight).min() else { return Vec::new() };
    definitions.retain(|it| it.weight == weight);
    if let Some(usual) = NAMES.iter().find(|name| definitions.iter().any(|it| it.name == **name)) {
        definitions.retain(|it| it.name == *usual);
    }
    definitions.dedup_by(|one, other| one.name == other.name);
    let is_package = place.file.ends_with("__init__.py");
    let imports: Vec<String> = module.imported.iter().map(|it| absolute(it, &place.module, is_package)).collect();
    let candidate = |it: Definition| Candidate {
        application: Application {
            app: format!("{}:{}", place.module, it.name),
            app_dir: files::plain(&place.app_dir),
            framework: it.framework,
            interface: it.interface,
            is_factory: it.weight == Weight::Factory,
        },
        seen: Seen::at(files::plain(&place.file), it.line),
        weight: it.weight,
        module: place.module.clone(),
        imports: imports.clone(),
    };
    definitions.into_iter().map(candidate).collect()
}

/// The full name of what the module `importer` imports as `written`, which may begin with dots.
fn absolute(written: &str, importer: &str, is_package: bool) -> String {
    let rest = written.trim_start_matches('.');
    let dots = written.len() - rest.len();
    if dots == 0 {
        return written.to_owned();
    }
    let parts: Vec<&str> = importer.split('.').collect();
    let up = if is_package { dots - 1 } else { dots };
    let package = &parts[..parts.len().saturating_sub(up)];
    package.iter().copied().chain([rest]).collect::<Vec<_>>().join(".")
}

struct Definition {
    line: usize,
    name: String,
    framework: Framework,
    interface: Interface,
    weight: Weight,
}

/// What `module` defines; `is_own` tells modules of the project from those of others.
fn definitions(module: &Module, is_own: &dyn Fn(&str) -> bool) -> Vec<Definition> {
    let of_name = |written: &str| {
        let starred = || module.stars().find_map(|star| known(&format!("{star}.{written}")));
        let class = || module.classes.iter().find(|class| class.name == written);
        let of_base = || class()?.bases.iter().find_map(|base| known(&module.resolve(base)));
        known(&module.resolve(written)).or_else(starred).or_else(of_base)
    };
    let imported = || {
        let all = module.imports.iter().filter_map(|it| {
            let first = it.full.split('.').next()?;
            KNOWN.iter().find(|(name, ..)| name.split('.').next() == Some(first))
        });
        all.map(|(_, framework, interface)| (*framework, *interface)).min_by_key(|(_, interface)| *interface)
    };
    let mut found = Vec::new();
    let mut add = |line: usize, name: &str, (framework, interface), weight: Weight| {
        let weight = if interface == Interface::Wsgi { Weight::Wsgi } else { weight };
        found.push(Definition { line, name: name.to_owned(), framework, interface, weight });
    };
    for assigned in &module.assigned {
        let Some(callee) = &assigned.callee else { continue };
        let last = callee.rsplit('.').next().unwrap_or(callee);
        let function = module.functions.iter().find(|function| function.name == *callee);
        let returned = function.and_then(|function| of_name(function.returns.as_deref()?));
        let is_usual = NAMES.contains(&assigned.name.as_str());
        let made = FACTORIES.contains(&last).then(|| imported().unwrap_or((Framework::Other, Interface::Asgi)));
        if let Some(what) = of_name(callee).or(returned).or(made.filter(|_| is_usual)) {
            add(assigned.line, &assigned.name, what, Weight::Instance);
        } else if is_usual && (function.is_some() || is_own(&module.resolve(callee))) {
            add(assigned.line, &assigned.name, imported().unwrap_or((Framework::Other, Interface::Asgi)), Weight::Name);
        }
    }
    for function in &module.functions {
        if function.is_async && function.parameters == ["scope", "receive", "send"] {
            add(function.line, &function.name, (Framework::Other, Interface::Asgi), Weight::Instance);
        } else if FACTORIES.contains(&function.name.as_str()) && function.needs_nothing && !function.is_async {
            let returned = function.returns.as_deref().and_then(of_name);
            if let Some(what) = returned.or_else(imported) {
                add(function.line, &function.name, what, Weight::Factory);
            }
        }
    }
    if found.is_empty() {
        // `api` is as often a client of somebody else's.
        let is_usual = |name: &str| name != "api" && NAMES.contains(&name);
        let named = module.imports.iter().filter(|it| is_usual(&it.name) && is_own(&it.full));
        let each = named.map(|it| Definition {
            line: 1,
            name: it.name.clone(),
            framework: Framework::Other,
            interface: Interface::Asgi,
            weight: Weight::Name,
        });
        found.extend(each);
    }
    found
}
