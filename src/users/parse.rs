//! One statement of a users file, understood as far as it has to be. Pure.
//!
//! Roles are taken apart completely, because what the server gets is made anew from them (verifiers
//! instead of passwords, `alter` for those that exist). Grants are only told apart by what they
//! concern. What is not on the list of DESIGN §7 is refused.

use secrecy::SecretString;

use crate::pg::lexer::{self, Token, TokenKind};
use crate::pg::{quote, scram};

/// What a statement is, and so when it is run.
#[derive(Debug)]
pub(super) enum Parsed {
    Role(RoleChange),
    /// Memberships, settings and comments of roles: run as written, once a server.
    RoleSql,
    Schema {
        /// `None` with `authorization`: the schema is named like the role.
        name: Option<String>,
        authorization: Option<RoleName>,
    },
    /// The statement with `if not exists`.
    Extension(String),
    /// About the database as such; run as written, with the database's present name.
    DatabaseSql,
    /// A guarded `do` block that makes roles; the text with verifiers for passwords.
    RoleBlock(String),
    /// Any other `do` block of the first phase.
    Block(String),
    /// A `do` block that grants on objects, which only the second phase has.
    ObjectBlock(String),
    ObjectSql,
    DefaultPrivileges {
        /// Where `for role …` goes when the statement has none: an offset in the script.
        for_role_at: Option<usize>,
    },
}

/// `create role` or `alter role`, with what it says and nothing that it does not say.
#[derive(Debug)]
pub(super) struct RoleChange {
    pub name: RoleName,
    pub verb: Verb,
    pub superuser: Option<bool>,
    pub createdb: Option<bool>,
    pub createrole: Option<bool>,
    pub inherit: Option<bool>,
    pub login: Option<bool>,
    pub replication: Option<bool>,
    pub bypassrls: Option<bool>,
    pub connection_limit: Option<i32>,
    pub valid_until: Option<String>,
    pub password: Option<Password>,
    pub in_roles: Vec<RoleName>,
    pub members: Vec<RoleName>,
    pub admins: Vec<RoleName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// The role is to have what the statement says and the server's defaults for the rest.
    Create,
    /// Only what the statement says.
    Alter,
}

/// `Debug` shows no password.
#[derive(Debug, Clone)]
pub(super) enum Password {
    /// `password null`, or an empty one, which the server takes for none.
    None,
    Clear(SecretString),
    /// The file gives a verifier already.
    Stored(SecretString),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RoleName {
    Named(String),
    /// `current_user` and its kin: in a users file, the owner of the database.
    Owner,
}

/// Why a statement is not taken. Never quotes the statement: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub line: u32,
    pub column: u32,
    pub reason: String,
    pub hint: Option<String>,
}

type Parse<T> = Result<T, Refusal>;

/// Takes one statement apart; `tokens` are all of its tokens, of which there is at least one.
pub(super) fn statement(tokens: &[Token<'_>]) -> Parse<Parsed> {
    let mut cursor = Cursor { tokens, at: 0 };
    let first = cursor.peek().map(|token| token.value.to_string()).unwrap_or_default();
    cursor.at = 1;
    match first.as_str() {
        "create" => create(cursor),
        "alter" => alter(cursor),
        "grant" | "revoke" => Ok(grant(tokens)),
        "comment" => comment(cursor),
        "do" => block(tokens),
        _ => Err(refused(tokens)),
    }
}

fn create(mut cursor: Cursor<'_>) -> Parse<Parsed> {
    let login = if cursor.take("user") {
        if cursor.peek_word("mapping") {
            return Err(refused_as(cursor.tokens, "create user mapping", MIGRATION));
        }
        true
    } else if cursor.take("role") || cursor.take("group") {
        false
    } else if cursor.take("schema") {
        return schema(cursor);
    } else if cursor.take("extension") {
        return extension(cursor);
    } else {
        return Err(refused(cursor.tokens));
    };
    let name = cursor.role()?;
    let mut role = RoleChange::new(name, Verb::Create);
    role.login = Some(login);
    role_options(&mut cursor, &mut role)?;
    Ok(Parsed::Role(role))
}

fn alter(mut cursor: Cursor<'_>) -> Parse<Parsed> {
    if cursor.take("default") {
        return default_privileges(cursor);
    }
    if cursor.take("database") {
        cursor.name()?;
        let allowed = ["set", "reset", "connection", "with"];
        if !allowed.iter().any(|word| cursor.peek_word(word))
            || cursor.contains(&["tablespace", "is_template", "allow_connections"])
        {
            return Err(refused(cursor.tokens));
        }
        return Ok(Parsed::DatabaseSql);
    }
    if cursor.take("group") {
        cursor.role()?;
        return if cursor.peek_word("add") || cursor.peek_word("drop") {
            Ok(Parsed::RoleSql)
        } else {
            Err(refused(cursor.tokens))
        };
    }
    if !(cursor.take("role") || cursor.take("user")) || cursor.peek_word("mapping") {
        return Err(refused(cursor.tokens));
    }
    let name = cursor.role()?;
    if cursor.peek_word("in") {
        return Ok(Parsed::DatabaseSql);
    }
    if cursor.peek_word("set") || cursor.peek_word("reset") {
        return Ok(Parsed::RoleSql);
    }
    if cursor.peek_word("rename") {
        let hint = "create the role under its new name instead";
        return Err(refused_as(cursor.tokens, "alter role … rename to", hint));
    }
    let mut role = RoleChange::new(name, Verb::Alter);
    role_options(&mut cursor, &mut role)?;
    Ok(Parsed::Role(role))
}

impl RoleChange {
    pub(super) fn new(name: RoleName, verb: Verb) -> Self {
        Self {
            name,
            verb,
            superuser: None,
            createdb: None,
            createrole: None,
            inherit: None,
            login: None,
            replication: None,
            bypassrls: None,
            connection_limit: None,
            valid_until: None,
            password: None,
            in_roles: Vec::new(),
            members: Vec::new(),
            admins: Vec::new(),
        }
    }
}

fn role_options(cursor: &mut Cursor<'_>, role: &mut RoleChange) -> Parse<()> {
    cursor.take("with");
    while let Some(token) = cursor.peek() {
        if token.kind != TokenKind::Word {
            return Err(cursor.unexpected("an option of the role"));
        }
        let word = token.value.to_string();
        cursor.at += 1;
        let flag = |word: &str| !word.starts_with("no");
        match word.as_str() {
            "superuser" | "nosuperuser" => role.superuser = Some(flag(&word)),
            "createdb" | "nocreatedb" => role.createdb = Some(flag(&word)),
            "createrole" | "nocreaterole" => role.createrole = Some(flag(&word)),
            "inherit" | "noinherit" => role.inherit = Some(flag(&word)),
            "login" | "nologin" => role.login = Some(flag(&word)),
            "replication" | "noreplication" => role.replication = Some(flag(&word)),
            "bypassrls" | "nobypassrls" => role.bypassrls = Some(flag(&word)),
            "encrypted" => {}
            "password" => role.password = Some(cursor.password()?),
            "connection" if cursor.take("limit") => {
                role.connection_limit = Some(cursor.integer()?);
            }
            "valid" if cursor.take("until") => role.valid_until = Some(cursor.string()?),
            "in" if cursor.take("role") || cursor.take("group") => {
                role.in_roles.extend(cursor.roles()?);
            }
            "role" | "user" => role.members.extend(cursor.roles()?),
            "admin" => role.admins.extend(cursor.roles()?),
            "sysid" => {
                cursor.integer()?;
            }
            _ => {
                cursor.at -= 1;
                return Err(cursor.unexpected("an option of the role"));
            }
        }
    }
    Ok(())
}

fn schema(mut cursor: Cursor<'_>) -> Parse<Parsed> {
    cursor.if_not_exists();
    let name =
        if cursor.peek_word("authorization") { None } else { Some(cursor.name()?.to_owned()) };
    let authorization = match cursor.take("authorization") {
        true => Some(cursor.role()?),
        false => None,
    };
    if let Some(token) = cursor.peek() {
        return Err(Refusal {
            line: token.line,
            column: token.column,
            reason: "a schema of a users file is created empty".to_owned(),
            hint: Some("create what it holds in a migration".to_owned()),
        });
    }
    Ok(Parsed::Schema { name, authorization })
}

fn extension(mut cursor: Cursor<'_>) -> Parse<Parsed> {
    cursor.if_not_exists();
    let mut sql = format!("create extension if not exists {}", quote::ident(cursor.name()?));
    while let Some(token) = cursor.peek() {
        sql.push(' ');
        sql.push_str(token.text);
        cursor.at += 1;
    }
    Ok(Parsed::Extension(sql))
}

/// Memberships have no `on`; a privilege on an object always has one (it is reserved).
fn grant(tokens: &[Token<'_>]) -> Parsed {
    let Some(on) = tokens.iter().position(|token| token.is_word("on")) else {
        return Parsed::RoleSql;
    };
    let object = tokens.get(on + 1);
    let is = |word: &str| object.is_some_and(|token| token.is_word(word));
    if is("database") || is("tablespace") || is("parameter") {
        Parsed::DatabaseSql
    } else {
        Parsed::ObjectSql
    }
}

fn comment(mut cursor: Cursor<'_>) -> Parse<Parsed> {
    cursor.take("on");
    if cursor.take("role") {
        return Ok(Parsed::RoleSql);
    }
    Err(refused(cursor.tokens))
}

fn default_privileges(mut cursor: Cursor<'_>) -> Parse<Parsed> {
    if !cursor.take("privileges") {
        return Err(cursor.unexpected("`privileges`"));
    }
    let at = &cursor.tokens[cursor.at - 1];
    let end = at.offset + at.text.len();
    // `for` is reserved; before `grant` or `revoke` it can only name roles.
    let has_role = cursor.tokens[cursor.at..]
        .iter()
        .take_while(|token| !token.is_word("grant") && !token.is_word("revoke"))
        .any(|token| token.is_word("for"));
    Ok(Parsed::DefaultPrivileges { for_role_at: (!has_role).then_some(end) })
}

/// A `do` block: its body is SQL or PL/pgSQL, whose words say what it is about.
fn block(tokens: &[Token<'_>]) -> Parse<Parsed> {
    let Some(body) = tokens.iter().find(|token| token.kind == TokenKind::String) else {
        return Err(refused(tokens));
    };
    let words = words_of(&body.value);
    let has = |list: &[&str]| list.iter().any(|word| words.iter().any(|other| other == word));
    let refuse = |reason: &str, hint: &str| Refusal {
        line: tokens[0].line,
        column: tokens[0].column,
        reason: reason.to_owned(),
        hint: Some(hint.to_owned()),
    };
    if has(&["drop"]) {
        return Err(refuse(
            "this `do` block drops something",
            "users files only create, alter and grant: delete the block",
        ));
    }
    if has(&["create"]) && !has(&["if", "exception"]) {
        return Err(refuse(
            "this `do` block creates something without asking whether it is there",
            "guard it by `if not exists (…) then … end if`, or write the statement without the block",
        ));
    }
    let Some(safe_body) = hide_passwords(&body.value) else {
        return Err(refuse(
            "this `do` block gives a password that is not written as a plain string",
            "write it as `password '…'`, so that it can be sent as a verifier",
        ));
    };
    let mut text = String::from("do ");
    for token in &tokens[1..] {
        if token.offset == body.offset {
            text.push_str(&quote::literal(&safe_body));
        } else {
            text.push_str(token.text);
        }
        text.push(' ');
    }
    let text = text.trim_end().to_owned();
    let about_objects = [
        "table",
        "tables",
        "sequence",
        "sequences",
        "function",
        "functions",
        "procedure",
        "procedures",
        "routine",
        "routines",
        "type",
        "domain",
        "privileges",
    ];
    let about_database =
        ["schema", "extension", "database", "current_database", "current_schema", "on"];
    Ok(if has(&["grant", "revoke", "alter"]) && has(&about_objects) {
        Parsed::ObjectBlock(text)
    } else if has(&["role", "user", "group", "grant"]) && !has(&about_database) {
        Parsed::RoleBlock(text)
    } else {
        Parsed::Block(text)
    })
}

/// The words of a body, those inside of its strings (dynamic SQL) as well.
fn words_of(body: &str) -> Vec<String> {
    let Ok(tokens) = lexer::tokens(body) else { return Vec::new() };
    let mut words = Vec::new();
    for token in &tokens {
        match token.kind {
            TokenKind::Word => words.push(token.value.to_string()),
            TokenKind::String if token.value.contains(' ') => words.extend(words_of(&token.value)),
            TokenKind::String
            | TokenKind::QuotedIdent
            | TokenKind::BitString
            | TokenKind::Number
            | TokenKind::Param
            | TokenKind::Operator
            | TokenKind::Punct
            | TokenKind::Other => {}
        }
    }
    words
}

/// `body` with a verifier for each password in clear; `None` where one cannot be told.
fn hide_passwords(body: &str) -> Option<String> {
    if !body.to_ascii_lowercase().contains("password") {
        return Some(body.to_owned());
    }
    let tokens = lexer::tokens(body).ok()?;
    let mut text = String::new();
    let mut copied = 0;
    for (index, token) in tokens.iter().enumerate() {
        let replacement = if token.is_word("password") {
            match tokens.get(index + 1) {
                Some(next) if next.kind == TokenKind::String || next.is_word("null") => continue,
                Some(_) | None => return None,
            }
        } else if token.kind == TokenKind::String {
            let is_password = index > 0 && tokens[index - 1].is_word("password");
            if is_password && !token.value.is_empty() && !scram::is_stored_form(&token.value) {
                scram::verifier(&token.value)
            } else if is_password {
                continue;
            } else {
                hide_passwords(&token.value)?
            }
        } else {
            continue;
        };
        text.push_str(&body[copied..token.offset]);
        text.push_str(&quote::literal(&replacement));
        copied = token.offset + token.text.len();
    }
    text.push_str(&body[copied..]);
    Some(text)
}

/// The words for "not in a users file", with the way out.
fn refused(tokens: &[Token<'_>]) -> Refusal {
    let mut words: Vec<&str> = tokens
        .iter()
        .take_while(|token| token.kind == TokenKind::Word)
        .take(2)
        .map(|token| &*token.value)
        .collect();
    // The second word of `create x`, `drop x` is a keyword; that of other statements may be a name.
    if !matches!(words.first(), Some(&("create" | "drop" | "alter" | "comment" | "truncate"))) {
        words.truncate(1);
    }
    let hint = match (words.first().copied(), words.get(1).copied()) {
        (Some("create" | "drop" | "alter"), Some("database")) => {
            "delete the line: seedbed makes, owns and names the database itself"
        }
        (Some("drop"), Some("role" | "user" | "group" | "owned")) => {
            "delete the line: roles that exist are altered to what the file says"
        }
        (Some("begin" | "commit" | "start" | "end" | "set" | "rollback"), _) => {
            "delete the line: each phase of the users files is one transaction"
        }
        _ => MIGRATION,
    };
    refused_as(tokens, &words.join(" "), hint)
}

const MIGRATION: &str = "move it to a migration: `seedbed new \"…\"`";

fn refused_as(tokens: &[Token<'_>], what: &str, hint: &str) -> Refusal {
    Refusal {
        line: tokens[0].line,
        column: tokens[0].column,
        reason: match what.is_empty() {
            true => "this is no statement for a users file".to_owned(),
            false => format!("`{what}` is no statement for a users file"),
        },
        hint: Some(hint.to_owned()),
    }
}

/// A place in a statement.
struct Cursor<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<&'a Token<'a>> {
        self.tokens.get(self.at)
    }

    fn peek_word(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| token.is_word(word))
    }

    /// Steps over `word` if it is next.
    fn take(&mut self, word: &str) -> bool {
        let is_next = self.peek_word(word);
        self.at += usize::from(is_next);
        is_next
    }

    fn if_not_exists(&mut self) {
        let at = self.at;
        if !(self.take("if") && self.take("not") && self.take("exists")) {
            self.at = at;
        }
    }

    fn contains(&self, words: &[&str]) -> bool {
        self.tokens.iter().any(|token| words.iter().any(|word| token.is_word(word)))
    }

    fn name(&mut self) -> Parse<&'a str> {
        let name = self.peek().and_then(|token| token.name());
        let Some(name) = name else { return Err(self.unexpected("a name")) };
        self.at += 1;
        Ok(name)
    }

    fn role(&mut self) -> Parse<RoleName> {
        let owner = ["current_user", "current_role", "session_user"];
        if owner.iter().any(|word| self.peek_word(word)) {
            self.at += 1;
            return Ok(RoleName::Owner);
        }
        Ok(RoleName::Named(self.name()?.to_owned()))
    }

    fn roles(&mut self) -> Parse<Vec<RoleName>> {
        let mut roles = vec![self.role()?];
        while self.peek().is_some_and(|token| token.is_punct(",")) {
            self.at += 1;
            roles.push(self.role()?);
        }
        Ok(roles)
    }

    fn string(&mut self) -> Parse<String> {
        let Some(token) = self.peek().filter(|token| token.kind == TokenKind::String) else {
            return Err(self.unexpected("a string in single quotes"));
        };
        self.at += 1;
        Ok(token.value.to_string())
    }

    fn password(&mut self) -> Parse<Password> {
        if self.take("null") {
            return Ok(Password::None);
        }
        let text = self.string()?;
        Ok(if text.is_empty() {
            Password::None
        } else if scram::is_stored_form(&text) {
            Password::Stored(text.into())
        } else {
            Password::Clear(text.into())
        })
    }

    fn integer(&mut self) -> Parse<i32> {
        let negative = self.peek().is_some_and(|token| token.is_punct("-"));
        self.at += usize::from(negative);
        let number = self
            .peek()
            .filter(|token| matches!(token.kind, TokenKind::Number | TokenKind::String))
            .and_then(|token| token.value.parse::<i32>().ok());
        let Some(number) = number else { return Err(self.unexpected("a whole number")) };
        self.at += 1;
        Ok(if negative { -number } else { number })
    }

    /// Says where the statement stops making sense, without quoting it.
    fn unexpected(&self, wanted: &str) -> Refusal {
        let token = self.peek().or(self.tokens.last()).expect("a statement has a token");
        Refusal {
            line: token.line,
            column: token.column,
            reason: match self.peek() {
                Some(_) => format!("expected {wanted} here"),
                None => format!("the statement ends where {wanted} is expected"),
            },
            hint: None,
        }
    }
}
