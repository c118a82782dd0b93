// One function of a module as C++: a register is an unsigned number of its width, read as an instruction's type.
#pragma once
#include <algorithm>
#include <map>
#include <set>

#include "ptx.h"
#include "text.h"

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
