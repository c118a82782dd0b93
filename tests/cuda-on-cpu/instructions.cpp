// Instructions as C++, in the words of run.h. What is not known is refused by name.
#include "writer.h"

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

// Refuses words of an instruction that are neither its first `before` ones, its type, nor known.
static void only(const List &m, const std::set<string> &known, size_t before, size_t types = 1) {
    for (size_t i = before; i + types < m.size(); i++)
        if (!known.count(m[i])) refuse("." + m[i] + " is not known");
}

void Writer::convert(const List &m, const List &o) {
    only(m, {"rn", "rz", "rni", "rzi", "rmi", "rpi", "rna", "ftz", "sat"}, 1, 2);
    string to = m[m.size() - 2], from = m.back(), rounding;
    size_of(to), size_of(from);
    bool saturate = std::count(m.begin(), m.end(), "sat") > 0;
    for (const string &w : m)
        if (w.size() >= 2 && w[0] == 'r' && w != "relu") rounding = w;
    auto is_float = [](const string &t) { return t[0] == 'f' || t[0] == 't' || starts(t, "bf"); };
    string c = c_type(to);
    if (to == "bf16x2" || to == "f16x2") {
        string e = to == "bf16x2" ? "B16" : "H16";
        if (rounding != "rn" || saturate) refuse("its rounding");
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
    only(m, {"and", "or", "xor", "ftz"}, 2);
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
        if (w == "add" || w == "min" || w == "max" || w == "exch" || w == "cas" || w == "and" || w == "or" || w == "xor" || w == "inc" || w == "dec") what = w;
    if (what.empty()) refuse("what it does");
    size_t first = base == "red" ? 0 : 1;
    string c = c_type(type), at = memory(m, o[first], size_of(type)), x = value(o[first + 1], type), next;
    if (what == "add") next = "add(old, x)";
    else if (what == "min" || what == "max") next = what + "_(old, x)";
    else if (what == "exch") next = "x";
    else if (what == "cas") next = "old == x ? " + value(o[first + 2], type) + " : old";
    else if (what == "inc") next = "old >= x ? 0 : old + 1";
    else if (what == "dec") next = "old == 0 || old > x ? x : old - 1";
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
        if (o.size() != 1 || o[0] != "0") refuse("another barrier than that of all threads");
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
    only(m, {"rn", "rz", "rm", "rp", "ftz", "approx", "full", "lo", "hi", "wide", "cc", "sat", "NaN", "wrap", "clamp", "l", "r", "shiftamt"}, 1);
    auto has = [&](const char *w) { return std::count(m.begin(), m.end(), w) > 0; };
    auto v = [&](size_t i) { return value(o[i], type); };
    if (has("sat") && !is_float) refuse("whole numbers that saturate");
    const string mode = has("rz") ? "FE_TOWARDZERO" : has("rm") ? "FE_DOWNWARD" : has("rp") ? "FE_UPWARD" : "";
    if (!mode.empty()) {
        bool known = base == "add" || base == "sub" || base == "mul" || base == "div" || base == "fma" || base == "mad";
        if (!known || (type != "f32" && type != "f64")) refuse("its rounding");
        string c = (base == "mad" ? "fma" : base) + "_to(" + mode;
        for (size_t i = 1; i < o.size(); i++) c += ", " + v(i);
        set(o[0], has("sat") ? "clamp01(" + c + "))" : c + ")");
        return true;
    }
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
