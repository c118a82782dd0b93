// A kernel, with the functions that it calls and the variables of its module, as the source of a library.
#include "writer.h"

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
    out.text += "extern \"C\" void cuda_on_cpu_variables(void (*there)(u64, u64)) {\n    (void)there;\n";
    for (auto &[name, v] : variables)
        if (v.space != "shared" && out.text.find(" " + c_name(name) + "[") != string::npos) out.text += "    there((u64)" + c_name(name) + ", sizeof " + c_name(name) + ");\n";
    out.text += "}\n";
    for (const string &h : heads) out.text += h;
    for (auto &[name, text] : written) out.text += text;
    out.text += "extern \"C\" void cuda_on_cpu_entry(Thread &t, const u8 *params) { entry(t, params); }\n";
    return out;
}
