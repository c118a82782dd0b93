// A module's text taken apart: its variables, and its functions as statements.
#include "ptx.h"

#include <algorithm>

#include "text.h"

Variable variable(const string &space, const string &declared) {
    Variable v;
    v.space = space;
    string left = declared;
    size_t equals = left.find('=');
    if (equals != string::npos) v.text = trimmed(left.substr(equals + 1)), left = left.substr(0, equals);
    string name, type;
    vector<string> all = words(left);
    for (size_t i = 0; i < all.size(); i++) {
        if (all[i] == ".align") v.align = (unsigned)std::stoul(all[++i]);
        else if (all[i] == ".ptr" || all[i] == ".global" || all[i] == ".const" || all[i] == ".shared" || all[i] == ".local") continue;
        else if (all[i][0] == '.') type = all[i].substr(1);
        else name += all[i];
    }
    unsigned long long count = 1;
    size_t bracket = name.find('[');
    if (bracket != string::npos) {
        string inside = name.substr(bracket + 1, name.find(']') - bracket - 1);
        count = inside.empty() ? 0 : std::stoull(inside);
        name = name.substr(0, bracket);
    }
    v.name = name;
    v.bytes = count * size_of(type);
    v.align = std::max(v.align, bracket == string::npos ? size_of(type) : 1u);
    v.text = v.text.empty() ? "" : type + "=" + v.text;
    return v;
}

namespace {

vector<Parameter> parameters(const string &list, unsigned &total) {
    vector<Parameter> out;
    total = 0;
    for (const string &one : parts(list)) {
        size_t at = one.find(".param");
        Variable v = variable("param", at == string::npos ? one : one.substr(at + 6));
        total = (total + v.align - 1) / v.align * v.align;
        out.push_back({v.name, total, (unsigned)v.bytes});
        total += (unsigned)v.bytes;
    }
    return out;
}

string between(const string &s, size_t open) {
    int depth = 0;
    for (size_t i = open; i < s.size(); i++) {
        if (s[i] == '(') depth++;
        if (s[i] == ')' && --depth == 0) return s.substr(open + 1, i - open - 1);
    }
    refuse("a bracket is not closed: " + s.substr(0, 80));
}

Function header(const string &s) {
    Function f;
    f.entry = s.find(".entry") != string::npos;
    size_t at = f.entry ? s.find(".entry") + 6 : s.find(".func") + 5;
    at = s.find_first_not_of(" \t\r\n", at);
    unsigned unused = 0;
    if (s[at] == '(') {
        string results = between(s, at);
        f.results = parameters(results, unused);
        at += results.size() + 2;
    }
    size_t open = s.find('(', at);
    f.name = trimmed(s.substr(at, open == string::npos ? string::npos : open - at));
    f.name = words(f.name)[0];
    if (open != string::npos) f.parameters = parameters(between(s, open), f.parameter_bytes);
    size_t most = s.find(".maxntid");
    if (most != string::npos) {
        unsigned count = 1;
        string list = s.substr(most + 8);
        for (const string &n : parts(list.substr(0, list.find_first_not_of("0123456789, \t\r\n")))) count *= (unsigned)std::stoul(n);
        f.max_threads = count;
    }
    return f;
}

}  // namespace

Module::Module(const string &ptx) {
    string s = without_comments(ptx), buffer;
    Function *inside = nullptr;
    int depth = 0, braces = 0;
    auto finish = [&](const string &statement) {
        string line = trimmed(statement);
        if (line.empty()) return;
        if (inside) {
            if (!starts(line, ".loc ") && !starts(line, ".loc\t") && !starts(line, ".pragma") && !starts(line, ".file")) inside->body.push_back(line);
            return;
        }
        if (line.find(".func") != string::npos || line.find(".entry") != string::npos) return;
        for (const char *space : {".global", ".const", ".shared"}) {
            size_t at = line.find(space);
            if (at == string::npos || line.find('"') < at) continue;
            Variable v = variable(space + 1, line.substr(at + strlen(space)));
            variables[v.name] = v;
            return;
        }
    };
    for (size_t i = 0; i < s.size(); i++) {
        char c = s[i];
        string so_far = trimmed(buffer);
        if (c == '\n' && !inside && (starts(so_far, ".version") || starts(so_far, ".target") || starts(so_far, ".address_size"))) {
            buffer.clear();
        } else if (c == '{' && !inside && (so_far.find(".entry") != string::npos || so_far.find(".func") != string::npos) && braces == 0) {
            Function f = header(so_far);
            inside = &(functions[f.name] = f);
            depth = 1, buffer.clear();
        } else if (inside && so_far.empty() && c == '{') {
            depth++, inside->body.push_back("{");
        } else if (inside && so_far.empty() && c == '}') {
            if (--depth == 0) inside = nullptr;
            else inside->body.push_back("}");
            buffer.clear();
        } else if (c == ';' && braces == 0) {
            finish(buffer), buffer.clear();
        } else if (inside && c == ':' && braces == 0 && so_far.find_first_of(" \t[,") == string::npos && s[i + 1] != ':') {
            inside->body.push_back(so_far + ":"), buffer.clear();
        } else if (inside && c == '\n' && ((starts(so_far, ".loc ") || starts(so_far, ".loc\t")) || starts(so_far, ".file"))) {
            buffer.clear();
        } else {
            if (c == '{') braces++;
            if (c == '}') braces--;
            buffer += c;
        }
    }
}

const Function *Module::entry(const string &name) const {
    auto found = functions.find(name);
    return found == functions.end() || !found->second.entry ? nullptr : &found->second;
}

vector<string> Module::entries() const {
    vector<string> out;
    for (auto &[name, f] : functions)
        if (f.entry) out.push_back(name);
    return out;
}
