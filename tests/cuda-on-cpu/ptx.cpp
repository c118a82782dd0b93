// From PTX to C++: a module's text is taken apart, and a kernel with the functions that it calls becomes the source of a library whose
// words are in run.h. A register is an unsigned number of its width, read as an instruction's type. What is not known is refused by name.
#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <set>
#include <sstream>
#include <stdexcept>

using std::string;
using std::to_string;
using std::vector;

namespace {

[[noreturn]] void refuse(const string &what) { throw std::runtime_error(what); }

bool starts(const string &s, const char *with) { return s.rfind(with, 0) == 0; }

string trimmed(const string &s) {
    size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
    return a == string::npos ? "" : s.substr(a, b - a + 1);
}

// At commas outside of brackets.
vector<string> parts(const string &s, char separator = ',') {
    vector<string> out;
    int depth = 0;
    string part;
    for (char c : s) {
        if (strchr("([{", c)) depth++;
        if (strchr(")]}", c)) depth--;
        if (c == separator && depth == 0) out.push_back(trimmed(part)), part.clear();
        else part += c;
    }
    if (!trimmed(part).empty()) out.push_back(trimmed(part));
    return out;
}

vector<string> words(const string &s) {
    std::istringstream in(s);
    vector<string> out;
    for (string w; in >> w;) out.push_back(w);
    return out;
}

string without_comments(const string &s) {
    string out;
    for (size_t i = 0; i < s.size(); i++) {
        if (s[i] == '"') {
            size_t end = s.find('"', i + 1);
            if (end == string::npos) end = s.size() - 1;
            out += s.substr(i, end - i + 1), i = end;
        } else if (s.compare(i, 2, "//") == 0) {
            while (i < s.size() && s[i] != '\n') i++;
            out += '\n';
        } else if (s.compare(i, 2, "/*") == 0) {
            i = s.find("*/", i);
            if (i == string::npos) break;
            i++, out += ' ';
        } else out += s[i];
    }
    return out;
}

// An instruction's words or operands; none beyond the last.
struct List : vector<string> {
    List(vector<string> v) : vector<string>(std::move(v)) {}
    const string &operator[](size_t i) const {
        if (i >= size()) refuse("it has other parts than is known");
        return at(i);
    }
};

unsigned size_of(const string &type) {
    if (type.find('e') != string::npos && type != "pred") refuse("the type ." + type + " is not known");
    if (type == "pred") return 1;
    size_t at = type.find_first_of("0123456789");
    if (at == string::npos) refuse("the type ." + type + " is not known");
    unsigned size = (unsigned)std::stoul(type.substr(at)) / 8;
    return type.find("x2") != string::npos && size == 2 ? 4 : size;
}

// ".align 8 .b8 name[16]", after its space.
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

string c_name(const string &s) {
    string out = "v_";
    for (char c : s) out += isalnum((unsigned char)c) || c == '_' ? string(1, c) : "_" + to_string((int)c) + "_";
    return out;
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

// Writes one function.
class Writer {
public:
    Writer(const Module &module, const Function &f, std::map<string, unsigned> &shared, unsigned &shared_bytes)
        : module(module), f(f), shared(shared), shared_bytes(shared_bytes) {
        scopes.emplace_back();
    }

    string written() {
        unsigned number = 0;
        for (const string &line : f.body) {
            try {
                statement(line);
            } catch (const std::exception &e) {
                refuse(f.name + ": `" + line + "`: " + e.what());
            }
            number++;
        }
        string out = signature() + " {\n";
        for (const string &r : used) out += "    " + r + "\n";
        return out + code + "    return;\n}\n";
    }

    string signature() const {
        if (f.entry) return "static void entry(Thread &t, const u8 *params)";
        string out = "static void " + c_name(f.name) + "(Thread &t";
        for (auto &p : f.results) out += ", u8 *" + c_name(p.name);
        for (auto &p : f.parameters) out += ", u8 *" + c_name(p.name);
        return out + ")";
    }

    std::set<string> called;
    bool together = false;

private:
    struct Register {
        string name, type;
    };
    const Module &module;
    const Function &f;
    std::map<string, unsigned> &shared;
    unsigned &shared_bytes;
    // By scope: registers, and variables of the function.
    struct Scope {
        std::map<string, Register> registers;
        vector<std::pair<string, Register>> families;
        std::map<string, Variable> variables;
        unsigned number = 0;
    };
    vector<Scope> scopes;
    unsigned scope_count = 0, places = 0;
    std::set<string> used;
    std::map<string, vector<string>> branch_targets;
    string code, guard;

    void emit(const string &line) { code += "    " + (guard.empty() ? "" : "if (" + guard + ") ") + "{ " + line + " }\n"; }

    // Registers and names.

    Register *find(const string &name) {
        for (size_t i = scopes.size(); i-- > 0;) {
            Scope &scope = scopes[i];
            auto at = scope.registers.find(name);
            if (at != scope.registers.end()) return &at->second;
            for (auto &[prefix, model] : scope.families) {
                if (name.size() > prefix.size() && starts(name, prefix.c_str()) &&
                    name.find_first_not_of("0123456789", prefix.size()) == string::npos) {
                    return &scope.registers.emplace(name, made(name, model.type, scope.number)).first->second;
                }
            }
        }
        return nullptr;
    }

    Register made(const string &name, const string &type, unsigned scope) {
        Register r{"r" + to_string(scope) + c_name(name), type};
        string c = type == "pred" ? "bool" : "u" + to_string(8 * size_of(type));
        used.insert(c + " " + r.name + " = 0;");
        return r;
    }

    Register &reg(const string &name) {
        Register *r = find(name);
        if (!r) refuse("the register " + name + " is not declared");
        return *r;
    }

    // The address of a name, as C++.
    string address(const string &name, string *space = nullptr) {
        auto is = [&](const char *s) {
            if (space) *space = s;
        };
        for (size_t i = scopes.size(); i-- > 0;) {
            auto at = scopes[i].variables.find(name);
            if (at == scopes[i].variables.end()) continue;
            if (at->second.space == "shared") return is("shared"), shared_place(at->second);
            is("own");
            return "(u64)own" + to_string(scopes[i].number) + c_name(name);
        }
        for (auto *list : {&f.parameters, &f.results})
            for (auto &p : *list)
                if (p.name == name) {
                    is("own");
                    return f.entry ? "((u64)params + " + to_string(p.offset) + ")" : "(u64)" + c_name(name);
                }
        auto found = module.variables.find(name);
        if (found == module.variables.end()) refuse("the name " + name + " is not declared");
        if (found->second.space != "shared") return is("own"), "(u64)" + c_name(name);
        is("shared");
        return shared_place(found->second);
    }

    // What a launch adds to the shared memory lies behind all that is declared with a size.
    string shared_place(const Variable &v) {
        return v.bytes == 0 ? "(u64)DYNAMIC" : "(u64)" + to_string(shared_offset(v));
    }

    unsigned shared_offset(const Variable &v) {
        auto at = shared.find(v.name);
        if (at != shared.end()) return at->second;
        unsigned align = std::max(v.align, 16u);
        unsigned offset = (shared_bytes + align - 1) / align * align;
        shared_bytes = offset + (unsigned)v.bytes;
        return shared[v.name] = offset;
    }

    static string c_type(const string &t) {
        if (t == "pred") return "bool";
        if (t == "f32" || t == "tf32") return "float";
        if (t == "f64") return "double";
        if (t == "f16") return "H16";
        if (t == "bf16") return "B16";
        if (t == "f16x2") return "Two<H16>";
        if (t == "bf16x2") return "Two<B16>";
        if (t[0] == 's') return "s" + t.substr(1);
        return "u" + to_string(8 * size_of(t));
    }

    // An operand read as a type.
    string value(const string &operand, const string &type) {
        string c = c_type(type);
        if (operand[0] == '!') return "!" + value(trimmed(operand.substr(1)), type);
        if (Register *r = find(operand)) {
            if (type == "pred") return r->name;
            return "as<" + c + ">(" + r->name + ")";
        }
        if (starts(operand, "0f") || starts(operand, "0F")) {
            string n = "0x" + operand.substr(2) + "u";
            return c == "double" ? "(double)f32_of(" + n + ")" : c == "float" ? "f32_of(" + n + ")" : "as<" + c + ">((u32)" + n + ")";
        }
        if (starts(operand, "0d") || starts(operand, "0D")) return "bits<double>((u64)0x" + operand.substr(2) + "ull)";
        if (isdigit((unsigned char)operand[0]) || operand[0] == '-') {
            string n = operand;
            if (n.back() == 'U') n.pop_back();
            if (type == "pred") return "(bool)(" + n + ")";
            bool negative = n[0] == '-';
            string digits = negative ? n.substr(1) : n;
            string number = negative ? "(u64)(-(s64)" + digits + "ull)" : "(u64)" + digits + "ull";
            return "as<" + c + ">(" + number + ")";
        }
        if (operand[0] == '%') return "as<" + c + ">(" + special(operand) + ")";
        if (operand == "WARP_SZ") return "as<" + c + ">((u32)32)";
        size_t plus = operand.find('+');
        if (plus != string::npos)
            return "as<" + c + ">(" + address(trimmed(operand.substr(0, plus))) + " + " + trimmed(operand.substr(plus + 1)) + ")";
        return "as<" + c + ">(" + address(operand) + ")";
    }

    static string special(const string &name) {
        static const std::map<string, string> known = {
            {"%tid", "t.tid"}, {"%ntid", "t.block->block"}, {"%ctaid", "t.block->at"}, {"%nctaid", "t.block->grid"}};
        size_t dot = name.find('.');
        auto at = known.find(name.substr(0, dot));
        if (at != known.end() && dot != string::npos) return at->second + name.substr(dot);
        if (name == "%laneid") return "t.lane";
        if (name == "%warpid") return "(t.index / 32)";
        if (name == "%lanemask_lt") return "((1u << t.lane) - 1)";
        if (name == "%lanemask_le") return "((2u << t.lane) - 1)";
        if (name == "%clock64" || name == "%globaltimer") return "(u64)0";
        if (name == "%clock") return "(u32)0";
        refuse("the register " + name + " is not known");
    }

    void set(const string &to, const string &c) {
        if (to == "_") return emit("(void)(" + c + ");");
        Register &r = reg(to);
        emit(r.type == "pred" ? r.name + " = " + c + ";" : "put(" + r.name + ", " + c + ");");
    }

    // Statements.

    void statement(const string &line) {
        if (line == "{") {
            scopes.emplace_back();
            scopes.back().number = ++scope_count;
            return;
        }
        if (line == "}") {
            scopes.pop_back();
            return;
        }
        if (line.back() == ':') {
            // An inline assembler's labels are of its scope; nvcc numbers its own.
            label = line.substr(0, line.size() - 1);
            code += "l" + c_name(label) + ":;\n";
            return;
        }
        if (line[0] == '.') return declaration(line);
        string left = line;
        guard.clear();
        if (left[0] == '@') {
            size_t space = left.find_first_of(" \t");
            guard = value(left.substr(1, space - 1), "pred");
            left = trimmed(left.substr(space));
        }
        size_t space = left.find_first_of(" \t\n");
        string op = left.substr(0, space);
        List operands(space == string::npos ? vector<string>{} : parts(left.substr(space)));
        instruction(op, operands);
        guard.clear();
    }
    string label;

    void declaration(const string &line) {
        vector<string> w = words(line);
        if (starts(w[0], ".reg.")) w.insert(w.begin() + 1, w[0].substr(4)), w[0] = ".reg";
        if (w[0] == ".reg") {
            string type = w[1].substr(1), rest;
            for (size_t i = 2; i < w.size(); i++) rest += w[i];
            for (const string &name : parts(rest)) {
                size_t angle = name.find('<');
                Scope &scope = scopes.back();
                if (angle != string::npos) scope.families.push_back({name.substr(0, angle), {"", type}});
                else scope.registers[name] = made(name, type, scope.number);
            }
            return;
        }
        if (w[0] == ".branchtargets") {
            branch_targets[label] = parts(line.substr(14));
            return;
        }
        if (w[0] == ".pragma" || w[0] == ".callprototype") return;
        for (const char *space : {".local", ".param", ".shared"}) {
            if (w[0] != space) continue;
            Variable v = variable(space + 1, line.substr(strlen(space)));
            if (v.space != "shared")
                used.insert("alignas(16) u8 own" + to_string(scopes.back().number) + c_name(v.name) + "[" +
                            to_string(std::max(v.bytes, 1ull)) + "] = {0};");
            scopes.back().variables[v.name] = v;
            return;
        }
        refuse("the directive is not known");
    }

    // "[%rd1+4]" as C++ and the space that a name in it lies in.
    string place(const string &operand, string &space) {
        if (operand.size() < 2 || operand[0] != '[') refuse("no address: " + operand);
        string inside = trimmed(operand.substr(1, operand.size() - 2)), offset = "0";
        size_t plus = inside.find('+');
        if (plus != string::npos) offset = trimmed(inside.substr(plus + 1)), inside = trimmed(inside.substr(0, plus));
        string base;
        if (Register *r = find(inside)) base = "(u64)" + r->name;
        else if (isdigit((unsigned char)inside[0])) base = "(u64)" + inside;
        else base = address(inside, &space);
        return base + " + (s64)" + offset;
    }

    string memory(const List &m, const string &operand, unsigned bytes) {
        string named, how;
        for (const string &w : m)
            for (const char *known : {"global", "shared", "local", "param", "const"})
                if (w == known || w == string(known) + "::cta" || w == string(known) + "::entry" || w == string(known) + "::func") how = known;
        string at = place(operand, named);
        string space = how == "global" ? (named == "own" ? "own" : "global") : how == "shared" ? "shared" : how.empty() && named != "own" ? "any" : "own";
        return space + "_at(t, " + at + ", " + to_string(bytes) + ", " + to_string(places++ % 8) + ")";
    }

    void instruction(const string &op, const List &o);
    void convert(const List &m, const List &o);
    void compare(const string &base, const List &m, const List &o);
    void atomic(const string &base, const List &m, const List &o);
    void warp(const string &base, const List &m, const List &o);
    void call(const List &o);
    void move(const List &m, const List &o);
    bool arithmetic(const string &base, const List &m, const List &o);
};

static vector<string> elements(const string &operand) {
    if (operand[0] != '{') return {operand};
    return parts(operand.substr(1, operand.size() - 2));
}

void Writer::move(const List &m, const List &o) {
    string type = m.back();
    vector<string> to = elements(o[0]), from = elements(o[1]);
    if (to.size() == 1 && from.size() == 1) return set(to[0], value(from[0], type));
    unsigned count = (unsigned)std::max(to.size(), from.size()), each = 8 * size_of(type) / count;
    string part = "u" + to_string(each);
    if (from.size() == 1) {
        emit("auto all = " + value(from[0], type) + ";" + [&] {
            string out;
            for (size_t i = 0; i < to.size(); i++)
                if (to[i] != "_") out += " put(" + reg(to[i]).name + ", (" + part + ")(all >> " + to_string(each * i) + "));";
            return out;
        }());
        return;
    }
    string all = "(u64)0";
    for (size_t i = 0; i < from.size(); i++) all += " | (u64)" + value(from[i], "b" + to_string(each)) + " << " + to_string(each * i);
    set(to[0], "as<" + c_type(type) + ">(" + all + ")");
}

void Writer::convert(const List &m, const List &o) {
    string to = m[m.size() - 2], from = m.back(), rounding;
    size_of(to), size_of(from);
    bool saturate = std::count(m.begin(), m.end(), "sat") > 0;
    for (const string &w : m)
        if (w.size() >= 2 && w[0] == 'r' && w != "relu") rounding = w;
    auto is_float = [](const string &t) { return t[0] == 'f' || t[0] == 't' || starts(t, "bf"); };
    string c = c_type(to);
    if (to == "bf16x2" || to == "f16x2") {
        string e = to == "bf16x2" ? "B16" : "H16";
        return set(o[0], "(Two<" + e + ">{" + e + "(" + value(o[2], "f32") + "), " + e + "(" + value(o[1], "f32") + ")})");
    }
    string x = value(o[1], from);
    if (to == "tf32") return set(o[0], "tf32_of(" + x + ")");
    if (is_float(to) && is_float(from)) {
        string wide = "(double)" + x;
        if (rounding == "rni") wide = "std::nearbyint(" + wide + ")";
        else if (rounding == "rzi") wide = "std::trunc(" + wide + ")";
        else if (rounding == "rmi") wide = "std::floor(" + wide + ")";
        else if (rounding == "rpi") wide = "std::ceil(" + wide + ")";
        else if (rounding == "rz" && to == "f32") wide = "toward_zero(" + wide + ")";
        else if (rounding != "" && rounding != "rn") refuse("the rounding ." + rounding);
        string y = to == "f32" || to == "f64" ? "(" + c + ")(" + wide + ")" : c + "((float)(" + wide + "))";
        return set(o[0], saturate ? "clamp01(" + y + ")" : y);
    }
    if (is_float(from)) {
        string wide = "(double)" + x;
        if (rounding == "rni") wide = "std::nearbyint(" + wide + ")";
        else if (rounding == "rzi") wide = "std::trunc(" + wide + ")";
        else if (rounding == "rmi") wide = "std::floor(" + wide + ")";
        else if (rounding == "rpi") wide = "std::ceil(" + wide + ")";
        else refuse("the rounding ." + rounding);
        return set(o[0], "whole<" + c + ">(" + wide + ")");
    }
    if (is_float(to)) {
        if (rounding != "rn" && rounding != "") refuse("the rounding ." + rounding);
        return set(o[0], to == "f32" || to == "f64" ? "(" + c + ")" + x : c + "((float)" + x + ")");
    }
    set(o[0], saturate ? "saturated<" + c + ">(" + x + ")" : "(" + c + ")" + x);
}

void Writer::compare(const string &base, const List &m, const List &o) {
    string type = m.back(), test = m[1], joined, x = value(o[1], type), y = value(o[2], type), result;
    for (const string &w : m)
        if (w == "and" || w == "or" || w == "xor") joined = w;
    static const std::map<string, string> plain = {{"eq", "=="}, {"ne", "!="}, {"lt", "<"}, {"le", "<="}, {"gt", ">"}, {"ge", ">="},
                                                   {"lo", "<"},  {"ls", "<="}, {"hi", ">"}, {"hs", ">="}};
    bool is_float = type[0] == 'f' || starts(type, "bf");
    if (is_float) x = (type == "f64" ? "(double)" : "(float)") + x, y = (type == "f64" ? "(double)" : "(float)") + y;
    if (base == "set") refuse("set");
    if (plain.count(test)) {
        result = "x " + plain.at(test) + " y";
        if (is_float && test == "ne") result = "(x < y || x > y)";
    } else if (test == "num") result = "(x == x && y == y)";
    else if (test == "nan") result = "(x != x || y != y)";
    else if (test.size() == 3 && test.back() == 'u' && plain.count(test.substr(0, 2))) {
        result = "(x != x || y != y || x " + plain.at(test.substr(0, 2)) + " y)";
    } else refuse("the comparison ." + test);
    vector<string> to = parts(o[0], '|');
    string line = "auto x = " + x + "; auto y = " + y + "; bool is = " + result + ";";
    string other = "!is";
    if (!joined.empty()) {
        string with = value(o[3], "pred"), sign = joined == "and" ? "&&" : joined == "or" ? "||" : "!=";
        line += " bool with = " + with + "; bool not_is = !is " + sign + " with; is = is " + sign + " with; (void)not_is;";
        other = "not_is";
    }
    if (to[0] != "_") line += " " + reg(to[0]).name + " = is;";
    if (to.size() > 1 && to[1] != "_") line += " " + reg(to[1]).name + " = " + other + ";";
    emit(line);
}

void Writer::atomic(const string &base, const List &m, const List &o) {
    string type = m.back(), what;
    if (type == "noftz") refuse("the type");
    for (const string &w : m)
        if (w == "add" || w == "min" || w == "max" || w == "exch" || w == "cas" || w == "and" || w == "or" || w == "xor" || w == "inc") what = w;
    size_t first = base == "red" ? 0 : 1;
    string c = c_type(type), at = memory(m, o[first], size_of(type)), x = value(o[first + 1], type), next;
    if (what == "add") next = "add(old, x)";
    else if (what == "min" || what == "max") next = what + "_(old, x)";
    else if (what == "exch") next = "x";
    else if (what == "cas") next = "old == x ? " + value(o[first + 2], type) + " : old";
    else if (what == "inc") next = "old >= x ? 0 : old + 1";
    else next = string("(") + c + ")(old " + (what == "and" ? "&" : what == "or" ? "|" : "^") + " x)";
    string line = "u8 *at = " + at + "; auto x = " + x + "; auto old = load<" + c + ">(at); store<" + c + ">(at, " + next + ");";
    if (first == 1 && o[0] != "_") line += " put(" + reg(o[0]).name + ", old);";
    emit(line + " (void)x;");
}

void Writer::warp(const string &base, const List &m, const List &o) {
    together = true;
    if (base == "shfl") {
        vector<string> to = parts(o[0], '|');
        static const std::map<string, string> kinds = {{"up", "UP"}, {"down", "DOWN"}, {"bfly", "BUTTERFLY"}, {"idx", "INDEX"}};
        string line = "bool there; u32 got = shuffle(t, " + kinds.at(m[2]) + ", " + value(o[1], "b32") + ", " + value(o[2], "b32") + ", " +
                      value(o[3], "b32") + ", " + value(o[4], "b32") + ", there);";
        if (to[0] != "_") line += " put(" + reg(to[0]).name + ", got);";
        if (to.size() > 1) line += " " + reg(to[1]).name + " = there;";
        return emit(line);
    }
    if (base == "vote") {
        string all = "ballot(t, " + value(o[1], "pred") + ", " + value(o[2], "b32") + ")";
        if (m[2] == "ballot") return set(o[0], all);
        string mask = "members(t, " + value(o[2], "b32") + ")";
        if (m[2] == "any") return set(o[0], all + " != 0");
        if (m[2] == "all") return set(o[0], all + " == " + mask);
        refuse("the vote ." + m[2]);
    }
    if (base == "redux") {
        string c = c_type(m.back()), how = m[2] == "add" ? "add(a, b)" : m[2] == "min" || m[2] == "max" ? m[2] + "_(a, b)" : m[2] == "and" ? "a & b" : m[2] == "or" ? "a | b" : "a ^ b";
        return set(o[0], "reduced<" + c + ">(t, " + value(o[1], m.back()) + ", " + value(o[2], "b32") + ", [](" + c + " a, " + c + " b) -> " + c + " { return " + how + "; })");
    }
    if (base == "bar" || base == "barrier") {
        if (m.size() > 1 && m[1] == "warp") return emit("cuda_on_cpu_pause(t, WARP, " + value(o[0], "b32") + ");");
        if (o.size() > 1) refuse("a barrier of some threads");
        return emit("cuda_on_cpu_pause(t, BLOCK, 0);");
    }
    if (base == "ldmatrix") {
        if (m[3] != "m8n8" || m[4] != "x4") refuse("another shape");
        string space, line = "u32 to[4]; ldmatrix4(t, " + place(o[1], space) + ", " + (std::count(m.begin(), m.end(), "trans") ? "true" : "false") + ", to);";
        vector<string> to = elements(o[0]);
        for (size_t i = 0; i < 4; i++) line += " put(" + reg(to[i]).name + ", to[" + to_string(i) + "]);";
        return emit(line);
    }
    if (base == "mma") {
        if (m[3] != "m16n8k16" || m[7] != "bf16" || m[6] != "f32") refuse("another shape or type");
        string line = "float d[4], c[4]; u32 a[4], b[2];";
        vector<string> d = elements(o[0]), a = elements(o[1]), b = elements(o[2]), c = elements(o[3]);
        for (size_t i = 0; i < 4; i++) line += " a[" + to_string(i) + "] = " + value(a[i], "b32") + "; c[" + to_string(i) + "] = " + value(c[i], "f32") + ";";
        for (size_t i = 0; i < 2; i++) line += " b[" + to_string(i) + "] = " + value(b[i], "b32") + ";";
        line += " mma_bf16(t, d, a, b, c);";
        for (size_t i = 0; i < 4; i++) line += " put(" + reg(d[i]).name + ", d[" + to_string(i) + "]);";
        return emit(line);
    }
    refuse("it is not known");
}

void Writer::call(const List &o) {
    size_t at = 0;
    vector<string> args;
    if (o[at][0] == '(') args = parts(o[at].substr(1, o[at].size() - 2)), at++;
    string name = o[at++];
    if (name == "__assertfail") return emit("cuda_on_cpu_fail(t, \"an assertion of the kernel does not hold\", 0);");
    if (!module.functions.count(name)) refuse("the function " + name + " is not in the module");
    if (at < o.size() && o[at][0] == '(')
        for (const string &a : parts(o[at].substr(1, o[at].size() - 2))) args.push_back(a);
    called.insert(name);
    string line = c_name(name) + "(t";
    for (const string &a : args) line += ", (u8 *)(" + address(a) + ")";
    emit(line + ");");
}

// What gives one number of one to three others of its type.
bool Writer::arithmetic(const string &base, const List &m, const List &o) {
    string type = m.back();
    bool is_float = type[0] == 'f' || starts(type, "bf");
    auto has = [&](const char *w) { return std::count(m.begin(), m.end(), w) > 0; };
    auto v = [&](size_t i) { return value(o[i], type); };
    auto done = [&](const string &c) {
        set(o[0], has("sat") && is_float ? "clamp01(" + c + ")" : c);
        return true;
    };
    if (base == "add" || base == "sub" || base == "addc" || base == "subc") {
        bool in = base.size() == 4, out = has("cc");
        if (in || out) return done((base[0] == 'a' ? "add" : "sub") + string("_carry<u") + type.substr(1) + ">(t, " + value(o[1], "u" + type.substr(1)) + ", " + value(o[2], "u" + type.substr(1)) + (in ? ", true" : ", false") + (out ? ", true)" : ", false)"));
        return done(base + "(" + v(1) + ", " + v(2) + ")");
    }
    if (base == "mul" || base == "mad" || base == "madc") {
        string product, result = type;
        if (is_float) product = base == "mul" ? "mul(" + v(1) + ", " + v(2) + ")" : "";
        else if (has("wide")) {
            result = type.substr(0, 1) + to_string(16 * size_of(type));
            product = "(" + c_type(result) + ")((" + c_type(result) + ")" + v(1) + " * (" + c_type(result) + ")" + v(2) + ")";
        } else product = string(has("hi") ? "mul_hi" : "mul") + "(" + v(1) + ", " + v(2) + ")";
        if (base == "mul") return done(product);
        if (is_float) return done("fma_(" + v(1) + ", " + v(2) + ", " + v(3) + ")");
        bool in = base == "madc", out = has("cc");
        string c = value(o[3], result);
        if (in || out) return done("add_carry<u" + result.substr(1) + ">(t, (u" + result.substr(1) + ")" + product + ", (u" + result.substr(1) + ")" + c + (in ? ", true" : ", false") + (out ? ", true)" : ", false)"));
        return done("add(" + product + ", " + c + ")");
    }
    if (base == "fma") return done("fma_(" + v(1) + ", " + v(2) + ", " + v(3) + ")");
    if (base == "div" || base == "rem") return done(base + "_(" + v(1) + ", " + v(2) + ")");
    if (base == "neg" || base == "abs") return done(base + "_(" + v(1) + ")");
    if (base == "min" || base == "max") {
        if (o.size() > 3) refuse("three numbers");
        return done(base + (has("NaN") ? "_nan(" : "_(") + v(1) + ", " + v(2) + ")");
    }
    string c = c_type(type);
    static const std::map<string, string> functions = {{"sqrt", "std::sqrt"}, {"sin", "std::sin"}, {"cos", "std::cos"},
                                                       {"lg2", "std::log2"},  {"ex2", "std::exp2"}, {"tanh", "std::tanh"}};
    if (functions.count(base)) return done("(" + c + ")" + functions.at(base) + "((" + (type == "f64" ? "double" : "float") + ")" + v(1) + ")");
    if (base == "rcp") return done("(" + c + ")(1 / " + v(1) + ")");
    if (base == "rsqrt") return done("(" + c + ")(1 / std::sqrt(" + v(1) + "))");
    if (base == "copysign") return done("std::copysign(" + v(2) + ", " + v(1) + ")");
    if (base == "and" || base == "or" || base == "xor") {
        string sign = base == "and" ? "&" : base == "or" ? "|" : "^";
        return done("(" + c + ")(" + v(1) + " " + sign + " " + v(2) + ")");
    }
    if (base == "not") return done(type == "pred" ? "!" + v(1) : "(" + c + ")~" + v(1));
    if (base == "cnot") return done("(" + c + ")(" + v(1) + " == 0)");
    if (base == "shl" || base == "shr") return done(base + "_(" + v(1) + ", " + value(o[2], "u32") + ")");
    if (base == "shf") return done(string(has("l") ? "shf_l" : "shf_r") + "(" + v(1) + ", " + v(2) + ", " + v(3) + (has("wrap") ? ", true)" : ", false)"));
    if (base == "lop3") return done("lop3_(" + v(1) + ", " + v(2) + ", " + v(3) + ", " + value(o[4], "u32") + ")");
    if (base == "prmt") return done("prmt_(" + v(1) + ", " + v(2) + ", " + v(3) + ")");
    if (base == "bfe") return done("bfe_(" + v(1) + ", " + value(o[2], "u32") + ", " + value(o[3], "u32") + ")");
    if (base == "bfi") return done("bfi_(" + v(1) + ", " + v(2) + ", " + value(o[3], "u32") + ", " + value(o[4], "u32") + ")");
    if (base == "brev" || base == "clz" || base == "popc") return done(base + "_(" + v(1) + ")");
    if (base == "bfind") return done(string("bfind_(") + v(1) + (has("shiftamt") ? ", true)" : ", false)"));
    if (base == "selp") return done(value(o[3], "pred") + " ? " + v(1) + " : " + v(2));
    return false;
}

void Writer::instruction(const string &op, const List &o) {
    List m(parts(op, '.'));
    const string &base = m[0];
    string type = m.back();
    if (base == "ld" || base == "st" || base == "ldu") {
        bool reads = base != "st";
        vector<string> list = elements(o[reads ? 0 : 1]);
        unsigned each = size_of(type);
        string c = c_type(type), line = "u8 *at = " + memory(m, o[reads ? 1 : 0], each * (unsigned)list.size()) + ";";
        if (!reads && list.size() == 1) return emit(line + " store<" + c + ">(at, " + value(list[0], type) + ");");
        for (size_t i = 0; i < list.size(); i++) {
            string part = "at + " + to_string(i * each);
            if (!reads) line += " store<" + c + ">(" + part + ", " + value(list[i], type) + ");";
            else if (list[i] != "_") line += " put(" + reg(list[i]).name + ", load<" + c + ">(" + part + "));";
        }
        return emit(line);
    }
    if (base == "mov") return move(m, o);
    if (base == "cvt") return convert(m, o);
    if (base == "cvta") {
        bool of_shared = std::count(m.begin(), m.end(), "shared") + std::count(m.begin(), m.end(), "shared::cta") > 0;
        bool to = m[1] == "to";
        string x = value(o[1], "u64");
        if (of_shared) x = to ? x + " - (u64)t.block->shared" : x + " + (u64)t.block->shared";
        return set(o[0], "(u64)(" + x + ")");
    }
    if (base == "setp" || base == "set") return compare(base, m, o);
    if (base == "bra") return emit("goto l" + c_name(o[0]) + ";");
    if (base == "brx") {
        string line = "switch (" + value(o[0], "u32") + ") {";
        const vector<string> &targets = branch_targets.at(o[1]);
        for (size_t i = 0; i < targets.size(); i++) line += " case " + to_string(i) + ": goto l" + c_name(targets[i]) + ";";
        return emit(line + " }");
    }
    if (base == "ret" || base == "exit") return emit("return;");
    if (base == "trap" || base == "brkpt") return emit("cuda_on_cpu_fail(t, \"a trap\", 0);");
    if (base == "call") return call(o);
    if (base == "atom" || base == "red") return atomic(base, m, o);
    if (base == "membar" || base == "fence" || base == "prefetch" || base == "prefetchu" || base == "nanosleep" || base == "griddepcontrol") return;
    if (base == "activemask") return set(o[0], "(1u << t.lane)");
    if (base == "shfl" || base == "vote" || base == "redux" || base == "bar" || base == "barrier" || base == "ldmatrix" || base == "mma")
        return warp(base, m, o);
    if (base == "testp") {
        string x = "(double)" + value(o[1], type), test = m[1];
        string how = test == "finite" ? "std::isfinite(x)" : test == "infinite" ? "std::isinf(x)" : test == "notanumber" ? "x != x" : test == "number" ? "x == x" : "";
        if (how.empty()) refuse("the test");
        return emit("double x = " + x + "; " + reg(o[0]).name + " = " + how + ";");
    }
    if (base == "cp" && m[1] == "async") {
        together = true;
        if (m[2] == "commit_group") return emit("cuda_on_cpu_copies_grouped(t);");
        if (m[2] == "wait_group") return emit("cuda_on_cpu_copies_there(t, " + o[0] + ");");
        if (m[2] == "wait_all") return emit("cuda_on_cpu_copies_grouped(t); cuda_on_cpu_copies_there(t, 0);");
        unsigned bytes = (unsigned)std::stoul(o[2]);
        string n = to_string(bytes), space, given = o.size() > 3 ? value(o[3], "u32") : n;
        return emit("u32 given = " + given + "; u64 from = " + place(o[1], space) + "; if (given) global_at(t, from, " + n + ", " +
                    to_string(places++ % 8) + "); cuda_on_cpu_copy(t, shared_at(t, " + place(o[0], space) + ", " + n + ", 0), (const u8 *)from, " + n + ", given);");
    }
    if (!arithmetic(base, m, o)) refuse("it is not known");
}

Translated Module::translated(const Function &entry) const {
    Translated out;
    std::map<string, unsigned> shared;
    std::map<string, string> written;
    vector<string> heads;
    std::set<string> waiting = {entry.name};
    while (!waiting.empty()) {
        string name = *waiting.begin();
        waiting.erase(waiting.begin());
        Writer writer(*this, functions.at(name), shared, out.shared_bytes);
        written[name] = writer.written();
        heads.push_back(writer.signature() + ";\n");
        out.together |= writer.together;
        for (const string &c : writer.called)
            if (!written.count(c)) waiting.insert(c);
    }
    out.shared_bytes = (out.shared_bytes + 15) / 16 * 16;
    out.text = "#include \"run.h\"\nenum : u64 { DYNAMIC = " + to_string(out.shared_bytes) + " };\n";
    for (auto &[name, v] : variables) {
        if (v.space == "shared") continue;
        string type = "u8", values = "{0}";
        if (!v.text.empty()) {
            size_t equals = v.text.find('=');
            type = v.text.substr(0, equals), values = v.text.substr(equals + 1);
            unsigned each = size_of(type);
            type = "u" + to_string(8 * each);
            if (values[0] != '{') values = "{" + values + "}";
            if (values.find_first_not_of("{}0123456789, \t\r\n-xabcdefABCDEF") != string::npos) continue;
            out.text += "alignas(16) static " + type + " " + c_name(name) + "[" + to_string(v.bytes / each) + "] = " + values + ";\n";
            continue;
        }
        out.text += "alignas(16) static u8 " + c_name(name) + "[" + to_string(std::max(v.bytes, 1ull)) + "];\n";
    }
    for (const string &h : heads) out.text += h;
    for (auto &[name, text] : written) out.text += text;
    out.text += "extern \"C\" void cuda_on_cpu_entry(Thread &t, const u8 *params) { entry(t, params); }\n";
    return out;
}
